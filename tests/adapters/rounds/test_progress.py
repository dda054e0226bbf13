"""Lines of progress: each loss is the mean over the steps that have it, and a bad one is named with its step."""

import pytest
import torch

from adapters.errors import TrainingFailed
from adapters.recipes.recipe import StepLosses
from adapters.rounds.progress import RoundProgress
from configs.round import RoundSettings
from storage.rounds.folder import RoundFolder


def taken(**losses: float) -> StepLosses:
    return StepLosses({name: torch.tensor(value) for name, value in losses.items()}, torch.tensor(0.5))


def test_steps_with_other_losses_share_a_line(tmp_path) -> None:
    progress = RoundProgress(RoundFolder(tmp_path), RoundSettings())
    for losses in ({"alignment": 0.2}, {"source": 1.0}, {"alignment": 0.4}):
        progress.add(taken(**losses), images=1)
    progress.flush()
    line = RoundFolder(tmp_path).last_progress()
    assert line is not None and line.step == 3 and line.kept_ratio == 0.5
    assert line.losses == pytest.approx({"alignment": 0.3, "source": 1.0})


def test_a_loss_that_is_not_finite_is_named_with_its_step(tmp_path) -> None:
    progress = RoundProgress(None, RoundSettings())
    for value in (1.0, float("nan"), 1.0):
        progress.add(taken(source=value), images=1)
    with pytest.raises(TrainingFailed, match="non-finite loss at step 2"):
        progress.flush()
