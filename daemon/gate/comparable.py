"""Whether the scores of a round can be compared at all: complete, finite, over the same images. numpy only."""

import numpy as np

from storage.rounds.records import ImageCounts, ModelScores, RoundScores, RoundSpec


def incomparable(spec: RoundSpec, scores: RoundScores, classes: int) -> str | None:
    """Why candidate and incumbent cannot be compared, in one sentence with the remedy; none when they can."""
    candidate, incumbent = scores.candidate, scores.incumbent
    if candidate is None or incumbent is None:
        return "scores.json lacks the candidate's or the incumbent's scores; run the round again"
    if not incumbent.finite:
        return f"version {spec.incumbent}, which serves, is not finite itself; roll back to a sound version"
    return _frames_problem(candidate, incumbent, classes) or _source_problem(
        spec, scores, candidate, incumbent, classes
    )


def _frames_problem(candidate: ModelScores, incumbent: ModelScores, classes: int) -> str | None:
    """What is wrong with the scores on hold-out frames."""
    images = len(candidate.flip_consistency)
    shapes: dict[str, tuple[int, ...]] = {
        "area": (images, classes),
        "gram": (images, classes, classes),
        "marginal": (images, classes),
        "dropout_disagreement": (images,),
        "flip_consistency": (images,),
        "agreement": (images,),
    }
    for who, model in (("candidate", candidate), ("incumbent", incumbent)):
        for name, shape in shapes.items():
            if not _has_shape(getattr(model, name), shape if images else (0,)):
                return f"scores.json: {name} of the {who} is not {list(shape)} finite numbers; run the round again"
    return None


def _source_problem(
    spec: RoundSpec, scores: RoundScores, candidate: ModelScores, incumbent: ModelScores, classes: int
) -> str | None:
    """What is wrong with the scores on source images: they are all there, or none is and none is expected."""
    released = scores.released
    counts = [candidate.source, incumbent.source, released.source if released else None]
    if candidate.flip_consistency:
        counts += [candidate.styled, incumbent.styled]
    present = [item for item in counts if item is not None]
    if not present and spec.settings.get("source") is None:
        return None
    if len(present) < len(counts):
        return "labelled source is configured but was not scored; give it at least one validation image"
    images = len(present[0].tp)
    if images == 0 or not all(_counts_fit(item, (images, classes)) for item in present):
        return f"scores.json: source counts are not {[images, classes]} numbers for every model; run the round again"
    return None


def _counts_fit(counts: ImageCounts, shape: tuple[int, int]) -> bool:
    return all(_has_shape(kind, shape) for kind in (counts.tp, counts.fp, counts.fn))


def _has_shape(values: object, shape: tuple[int, ...]) -> bool:
    try:
        array = np.asarray(values, dtype=np.float64)
    except ValueError:  # rows of different lengths
        return False
    return array.shape == shape and bool(np.isfinite(array).all())
