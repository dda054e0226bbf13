"""The vetoes of the gate: damage that no vote can outweigh (docs/explanation/gate.md). numpy only."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from adapters.scoring.scores.iou import class_iou, labelled_mean_iou
from configs.gate import GateSettings
from daemon.gate.bursts import Floats
from daemon.gate.votes import paired_bootstrap
from storage.rounds.records import ImageCounts, ModelScores, RoundScores
from storage.rounds.verdict import Check

Mask = NDArray[np.bool_]

ALIVE_SHARE = 0.5
"""A class is alive when the candidate finds at least this share of the labelled pixels that the anchor finds."""
KNOWN_SHARE = 0.1
"""A class is known when the reference gives it at least this share of `vanished_floor`."""


def completed(scores: RoundScores) -> Check:
    """Check that the round ended by itself: a stop says nothing about the candidate, a failure does."""
    done = scores.status == "completed" and scores.candidate is not None
    return veto("completed", done, f"the round {scores.status} after {scores.steps} steps: {scores.reason}")


def weights_vetoes(candidate: ModelScores) -> list[Check]:
    """Check that the candidate is a valid network: finite numbers, and exactly the incumbent's tensors."""
    missing = candidate.missing
    named = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
    return [
        veto("finite", candidate.finite, "weights and logits are " + ("" if candidate.finite else "not ") + "finite"),
        veto("tensors", not missing, f"tensors differ from the incumbent's: {named}" if missing else "all tensors"),
    ]


def vanished_class(
    scores: RoundScores, candidate: ModelScores, incumbent: ModelScores, settings: GateSettings, names: Sequence[str]
) -> Check:
    """Check that no class of the incumbent vanishes from the hold-out frames (github.com/lhoyer/MIC/issues/9).

    A class with at least `vanished_floor` of the incumbent's area must keep `vanished_ratio` of its expected share: the
    smaller of the incumbent's and the reference's. So a broken incumbent does not raise the expectation for a rare
    class that it predicts everywhere, nor for a class that the reference hardly contains. A class that the candidate
    still finds where source labels say it is (`_alive`) is not dead, only absent from these frames.
    """
    before, after = (np.asarray(model.area, dtype=np.float64).mean(axis=0) for model in (incumbent, candidate))
    anchor = before
    if len(scores.reference_marginal) == len(before):
        anchor = np.asarray(scores.reference_marginal, dtype=np.float64)
    expected = np.minimum(before, anchor)
    judged = (
        (before >= settings.advanced.vanished_floor)
        & (anchor >= KNOWN_SHARE * settings.advanced.vanished_floor)
        & (expected > 0)
    )
    ratio = np.divide(after, expected, out=np.full_like(after, np.inf), where=judged)
    gone = (ratio < settings.advanced.vanished_ratio) & ~_alive(candidate, incumbent, scores.released, len(before))
    named = [f"{names[int(k)]} {before[k]:.2%} -> {after[k]:.2%} of the area" for k in np.flatnonzero(gone)]
    detail = f"vanished: {', '.join(named)}" if named else "no class vanished from the hold-out frames"
    lowest = float(ratio.min()) if np.isfinite(ratio.min()) else None
    return veto("vanished_class", not named, detail, lowest, settings.advanced.vanished_ratio)


def source_miou(
    candidate: ImageCounts,
    released: ImageCounts,
    settings: GateSettings,
    class_names: Sequence[str],
    kept: int | None = None,
) -> Check:
    """Check that source mIoU is at most `source_drop` below the released model's: it detects slow forgetting too.

    `kept`: the version that serves again when the condition of the source returns; with one, any drop is allowed.
    """
    weights = settings.weights(class_names)
    models = (labelled_mean_iou(*counts.sums(), weights=weights) for counts in (released, candidate))
    before, after = (float(np.nan_to_num(value)) for value in models)  # without a class that counts, nothing is lost
    drop, detail = before - after, f"source mIoU of the released model {before:.4f}, of the candidate {after:.4f}"
    return _of_source("source_miou", drop <= settings.source_drop, detail, drop, settings.source_drop, kept)


def source_class_iou(
    candidate: ImageCounts,
    released: ImageCounts,
    settings: GateSettings,
    class_names: Sequence[str],
    seed: int,
    kept: int | None = None,
) -> Check:
    """Check that no labelled class loses more than `source_class_drop` IoU against the released model.

    A drop must also be significant over images: the IoU of a class with few pixels in one image varies by chance.
    `kept` as in `source_miou`.
    """
    before, after = (class_iou(*counts.sums()) for counts in (released, candidate))
    hits, _, missed = released.sums()
    drops = np.where(hits + missed > 0, before - after, 0.0)
    large = [int(k) for k in np.flatnonzero(drops > settings.advanced.source_class_drop)]
    lost = [k for k in large if _drop_is_significant(candidate, released, k, settings, seed)]
    named = [f"{class_names[k]} {before[k]:.4f} -> {after[k]:.4f}" for k in lost]
    worst = int(np.argmax(drops))
    detail = f"source IoU lost: {', '.join(named)}" if named else f"largest loss: {class_names[worst]}"
    return _of_source(
        "source_class_iou", not lost, detail, float(drops[worst]), settings.advanced.source_class_drop, kept
    )


def _of_source(name: str, passed: bool, detail: str, value: float, limit: float, kept: int | None) -> Check:
    if not passed and kept is not None:
        return veto(
            name, True, f"{detail}; allowed: version {kept} is kept for the condition of the source", value, limit
        )
    return veto(name, passed, detail, value, limit)


def agreement(candidate: ModelScores, settings: GateSettings) -> Check:
    """Check that the candidate agrees with the incumbent on `agreement_floor` of the pixels: no leap in one round."""
    share = float(np.mean(candidate.agreement))
    floor, detail = settings.advanced.agreement_floor, f"{share:.1%} of the hold-out pixels the incumbent's class"
    return veto("agreement", share >= floor, f"the candidate gives {detail}", share, floor)


def _alive(candidate: ModelScores, incumbent: ModelScores, released: ModelScores | None, classes: int) -> Mask:
    """Return classes [K] that the candidate still finds on source and on restyled source; none without source."""
    if not (released and released.source and candidate.source and candidate.styled and incumbent.styled):
        return np.zeros(classes, dtype=np.bool_)
    clean, anchor, styled, incumbent_styled = (
        counts.sums()[0] for counts in (candidate.source, released.source, candidate.styled, incumbent.styled)
    )
    alive: Mask = (clean > 0) & (clean >= ALIVE_SHARE * anchor) & (styled >= ALIVE_SHARE * incumbent_styled)
    return alive


def _drop_is_significant(
    candidate: ImageCounts, released: ImageCounts, k: int, settings: GateSettings, seed: int
) -> bool:
    """Return whether the lower confidence bound of the IoU drop of class `k` is above zero."""
    one, other = ([kind[:, k] for kind in counts.arrays()] for counts in (released, candidate))

    def drop(weights: Floats) -> Floats:
        return class_iou(*(weights @ kind for kind in one)) - class_iou(*(weights @ kind for kind in other))

    bound = paired_bootstrap(
        drop, len(candidate.tp), confidence=settings.confidence, resamples=settings.advanced.bootstrap, seed=seed
    )
    return bound.lower > 0


def veto(name: str, passed: bool, detail: str, value: float | None = None, limit: float | None = None) -> Check:
    """Return the check of a veto."""
    return Check(name=name, kind="veto", passed=passed, value=value, limit=limit, detail=detail)
