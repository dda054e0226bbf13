"""Single images as evidence: on which of them the first of two compared versions is worse. Pure and numpy only."""

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from adapters.scoring.scores.iou import labelled_mean_iou
from daemon.gate.bursts import Floats
from daemon.gate.conditions import OUTSIDE, places
from daemon.gate.votes import TOLERANCE, Weights, diversity
from storage.errors import StorageError
from storage.gate.comparisons import ComparisonScores
from storage.gate.conditions import Conditions
from storage.rounds.records import ImageCounts, ModelScores


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


def canary_losses(scores: ComparisonScores, classes: Weights = None) -> Floats:
    """Return by how much the IoU of the first version is lower on each labelled canary image [n], negative: higher.

    `classes`: their weights in the mean. A version that is not finite loses all. Empty without canary images. Raises
    StorageError for odd counts.
    """
    images = len(scores.canary_styles)
    if not images or len(scores.canary) != 2:
        return np.zeros(0)
    first, second = scores.canary
    if not first.finite or not second.finite:
        return np.full(images, float(second.finite) - float(first.finite))
    if first.canary is None or second.canary is None or not len(first.canary.tp) == len(second.canary.tp) == images:
        raise StorageError("the canary counts of a comparison are not one for each image")
    lost: Floats = np.nan_to_num(
        _iou_of_images(second.canary, classes) - _iou_of_images(first.canary, classes)
    )  # an image without a class that counts says nothing
    return lost


def overstated(scores: ComparisonScores, classes: Weights = None) -> float:
    """Return by how much the nuclear norm overstates, on canary images, the share on which the first version is worse.

    It is the rectifier of prediction-powered inference (Angelopoulos et al. 2023): the share of images with the smaller
    norm less the share with the lower IoU. 0 when it does not overstate.
    """
    frames = range(len(scores.canary_styles))
    on_canary = scores.model_copy(update={"frames": tuple(frames), "models": scores.canary})
    return max(0.0, (sum(looks_worse(on_canary)) - int((canary_losses(scores, classes) > 0.0).sum())) / len(frames))


def in_condition(scores: ComparisonScores, known: Conditions | None, number: int | None) -> ComparisonScores:
    """Return the scores with the canary images of one condition only: labels of another one say nothing about it.

    With all of them while no condition is known, or when it was merged or forgotten.
    """
    if known is None or known.condition(number) is None or not scores.canary_styles:
        return scores
    found = places(np.array(scores.canary_styles, np.float64), known).tolist()
    mine = [n for n, place in enumerate(found) if place != OUTSIDE and known.conditions[place].number == number]
    canary = tuple(_only(model, mine) for model in scores.canary)
    return scores.model_copy(update={"canary": canary, "canary_styles": [scores.canary_styles[n] for n in mine]})


def _only(model: ModelScores, images: Sequence[int]) -> ModelScores:
    if model.canary is None:
        return model
    kinds = {kind: [getattr(model.canary, kind)[n] for n in images] for kind in ("tp", "fp", "fn")}
    return model.model_copy(update={"gram": [model.gram[n] for n in images], "canary": ImageCounts(**kinds)})


def loses(scores: ComparisonScores, kind: Literal["source", "styled"], classes: Weights = None) -> list[bool]:
    """Return, for each labelled image on which the two differ, whether the first version has the lower IoU.

    The IoU of one image is the mean over its labelled classes, by the weights `classes`. `styled`: images restyled to
    the frames. Empty without labelled source.
    """
    first, second = (getattr(model, kind) for model in scores.models)
    if first is None or second is None:
        return []
    gain = _iou_of_images(first, classes) - _iou_of_images(second, classes)
    return [bool(value < 0.0) for value in gain if abs(value) > TOLERANCE]  # NaN, where nothing is labelled, is neither


def _iou_of_images(counts: ImageCounts, classes: Weights) -> Floats:
    tp, fp, fn = counts.arrays()
    return labelled_mean_iou(tp, fp, fn, classes)
