"""Single images as evidence: on which of them the first of two compared versions is worse. Pure and numpy only."""

from typing import Literal

import numpy as np

from adapters.scoring.scores.iou import labelled_mean_iou
from daemon.gate.votes import TOLERANCE, diversity
from storage.errors import StorageError
from storage.gate.comparisons import ComparisonScores


def looks_worse(scores: ComparisonScores) -> list[bool]:
    """Return, for each frame on which the two differ, whether the first version has the smaller batch nuclear norm.

    Of the scores of a single frame this one separates best (docs/explanation/probation.md). A version that is not
    finite is worse on every frame. Raises StorageError when scores are not numbers.
    """
    first, second = scores.models
    if not first.finite or not second.finite:
        return [not first.finite] * len(scores.frames)
    each = np.eye(len(scores.frames))
    gain = diversity(first.gram)(each) - diversity(second.gram)(each)
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
