"""Answers of comparisons, from drawn numbers."""

from storage.gate.comparisons import ComparisonScores
from storage.rounds.records import ImageCounts, ModelScores


def model_of(version: int, confidence: list[float]) -> ModelScores:
    """A model whose softmax of two classes has this confidence on each frame, half of the pixels in each class."""
    grams = [[[c * c + (1 - c) ** 2, 2 * c * (1 - c)], [2 * c * (1 - c), c * c + (1 - c) ** 2]] for c in confidence]
    return ModelScores(version=version, finite=True, gram=grams)


def scores_of(new: list[float], old: list[float]) -> ComparisonScores:
    frames = tuple(range(10, 10 + len(new)))
    return ComparisonScores(status="completed", frames=frames, models=(model_of(2, new), model_of(1, old)))


def on_labels(tp: list[int], norms: list[float]) -> ModelScores:
    """A version with so many of 10 pixels right on each canary image, and with norms like those of `model_of`."""
    rest = [[10 - n] for n in tp]
    counts = ImageCounts(tp=[[n] for n in tp], fp=rest, fn=rest)
    return model_of(0, norms).model_copy(update={"canary": counts})


def with_labels(new: ModelScores, old: ModelScores, styles: list[float]) -> ComparisonScores:
    return ComparisonScores(status="completed", canary=(new, old), canary_styles=[[style] for style in styles])
