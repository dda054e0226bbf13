"""Single images as evidence: on which of them the first of two compared versions is worse. Pure and numpy only."""

from collections.abc import Callable
from typing import Literal

import numpy as np

from adapters.scoring.scores.iou import labelled_mean_iou
from daemon.gate.bursts import Floats
from daemon.gate.votes import TOLERANCE, diversity
from storage.errors import StorageError
from storage.gate.comparisons import ComparisonScores
from storage.rounds.records import ModelScores


def looks_worse(scores: ComparisonScores) -> list[bool]:
    """Return, for each frame on which the two differ, whether the first version has the smaller batch nuclear norm.

    Of the scores of a single frame this one separates best (docs/explanation/probation.md). A version that is not
    finite is worse on every frame. Raises StorageError when scores are not numbers.
    """
    each = np.eye(len(scores.frames))
    return _fewer(scores, lambda model: diversity(model.gram)(each))


def is_less_stable(scores: ComparisonScores, kind: Literal["flip_consistency", "dropout_disagreement"]) -> list[bool]:
    """Return, for each frame on which the two differ, whether the first version changes more pixels.

    `kind`: when the frame is mirrored, or when features are dropped. Raises like `looks_worse`.
    """
    sign = 1.0 if kind == "flip_consistency" else -1.0
    return _fewer(scores, lambda model: sign * np.asarray(getattr(model, kind), np.float64))


def _fewer(scores: ComparisonScores, score: Callable[[ModelScores], Floats]) -> list[bool]:
    """Return, for each frame on which the two differ, whether the first version has the smaller score."""
    first, second = scores.models
    if not first.finite or not second.finite:
        return [not first.finite] * len(scores.frames)
    gain = score(first) - score(second)
    if gain.shape != (len(scores.frames),) or not np.isfinite(gain).all():
        raise StorageError("the scores of a comparison are not finite numbers")
    return [bool(value < 0.0) for value in gain if abs(value) > TOLERANCE]


def loses(scores: ComparisonScores, kind: Literal["source", "styled"]) -> list[bool]:
    """Return, for each labelled image on which the two differ, whether the first version has the lower IoU.

    The IoU of one image is the mean over its labelled classes. `styled`: images restyled to the frames. Empty without
    labelled source.
    """
    first, second = (getattr(model, kind) for model in scores.models)
    if first is None or second is None:
        return []
    gain = labelled_mean_iou(*first.arrays()) - labelled_mean_iou(*second.arrays())
    return [bool(value < 0.0) for value in gain if abs(value) > TOLERANCE]  # NaN, where nothing is labelled, is neither
