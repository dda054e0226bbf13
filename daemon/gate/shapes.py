"""Whether scores from a file are lists of finite numbers of the right lengths. numpy only."""

import numpy as np

from storage.rounds.records import ImageCounts, ModelScores

CLASS_AXES = {
    "area": 1, "gram": 2, "marginal": 1, "dropout_disagreement": 0, "flip_consistency": 0, "agreement": 0,
}  # fmt: skip
"""Scores on hold-out frames; each is a list over images with this number of axes over classes."""


def odd_scores(model: ModelScores, images: int, classes: int) -> tuple[str, list[int]] | None:
    """Return the name of the first score on frames that is not finite numbers, and the shape it should have."""
    for name, axes in CLASS_AXES.items():
        shape = (images, *[classes] * axes) if images else (0,)
        if not has_shape(getattr(model, name), shape):
            return name, list(shape)
    return None


def sound_counts(counts: ImageCounts, images: int, classes: int) -> bool:
    """Return whether the counts are finite numbers [images, classes]."""
    return all(has_shape(kind, (images, classes)) for kind in (counts.tp, counts.fp, counts.fn))


def has_shape(values: object, shape: tuple[int, ...]) -> bool:
    """Return whether nested lists are finite numbers of a shape."""
    try:
        array = np.asarray(values, dtype=np.float64)
    except ValueError:  # rows of different lengths
        return False
    return array.shape == shape and bool(np.isfinite(array).all())
