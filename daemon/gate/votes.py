"""The votes of the gate: four kinds of evidence that a candidate is better (docs/explanation/gate.md).

Each vote compares the two on the same images and is won when the lower bound of a paired bootstrap is above zero.
They are of different kinds because they fail on different candidates (docs/explanation/sources.md). numpy only.
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import numpy as np

from adapters.scoring.scores.iou import labelled_mean_iou
from configs.gate import GateSettings
from daemon.gate.bursts import Floats, Statistic, burst_length, drawn_weights, neighbour_correlation
from storage.rounds.records import ImageCounts, ModelScores
from storage.rounds.verdict import Check

CHUNK = 128
"""Resamples computed at once; bounds memory for joint statistics with many classes."""
DIVERSITY = "vote_diversity"
"""The vote that must always be among those won; it needs a margin when nothing is labelled."""
STYLED = "vote_styled_source"
"""The vote with true labels: when it is lost, the others do not count."""
Weights = Sequence[float] | None
"""How much each class counts in mIoU; None: all alike."""
TOLERANCE = 1e-6
"""An advantage below this is rounding, not evidence; all advantages are shares (0-1)."""
AETTA_EXPONENT = 3.0
"""Exponent of the marginal correction, as in AETTA."""
LEAST_RATIO = 0.1
"""Smallest marginal-entropy ratio the correction divides by; below, the estimated error is at its ceiling anyway."""
LEAST_DISAGREEMENT = 0.01
"""Disagreement added to both models: a constant answer never disagrees, and no division changes zero."""
LEAST_ENTROPY = 0.1
"""A reference marginal with less entropy (nats) gives no mix of classes to compare with; log K is used instead."""


class Advantage(NamedTuple):
    """How much better the candidate is on all images, with one-sided confidence bounds; positive is better."""

    value: float
    lower: float
    upper: float


def paired_bootstrap(
    statistic: Statistic, images: int, *, confidence: float, resamples: int, seed: int, burst: int = 1
) -> Advantage:
    """Return value and one-sided bounds of `statistic` at `confidence` (0.5-1), over `images` images.

    The same images are drawn with replacement for both models, and the advantage is computed again (Efron and
    Tibshirani 1993, percentile interval). Images are the unit: pixels of one image agree with each other too much to
    count as separate evidence. Neighbouring images are drawn together in bursts of `burst`, and the bounds are widened
    by sqrt(b / (b - 1)) for b bursts, because deviations within a sample are too small by that. Resamples in which the
    statistic is undefined (NaN) are omitted. Deterministic under `seed`.
    """
    weights = drawn_weights(images, burst, resamples, np.random.default_rng(seed))
    # Of few images the same ones are drawn again and again: 4 can be drawn in 35 ways, 1000 times.
    drawn, place = np.unique(weights, axis=0, return_inverse=True)
    values = np.concatenate([statistic(drawn[start : start + CHUNK]) for start in range(0, len(drawn), CHUNK)])
    values = values[place.ravel()]
    values = values[~np.isnan(values)]
    value = float(statistic(np.full((1, images), 1.0 / images))[0])
    if values.size == 0 or np.isnan(value):
        return Advantage(0.0, 0.0, 0.0)
    bursts = max(2.0, images / burst)
    apart = (np.quantile(values, [1.0 - confidence, confidence]) - value) * np.sqrt(bursts / (bursts - 1.0))
    return Advantage(value, value + float(apart[0]), value + float(apart[1]))


def diversity(gram: Sequence[Sequence[Sequence[float]]]) -> Statistic:
    """Return the batch nuclear norm of resampled images, as a share of its maximum: ||P||_* / sqrt(N K).

    Cui et al., CVPR 2020. `gram` is P^T P [images, K, K]. Each is divided by its pixel count, which is the sum of its
    entries because the rows of P sum to one. So images have equal weight. The norm of a resample is the sum of the
    roots of the eigenvalues of the sum.
    """
    grams = np.asarray(gram, dtype=np.float64)
    grams = grams / grams.sum(axis=(1, 2), keepdims=True)
    classes = grams.shape[-1]

    def norm(weights: Floats) -> Floats:
        joint = np.tensordot(weights, grams, axes=1)  # [R, K, K]
        eigenvalues = np.linalg.eigvalsh(joint).clip(min=0.0)
        share: Floats = np.sqrt(eigenvalues).sum(axis=-1) / np.sqrt(classes)
        return share

    return norm


def estimated_error(
    disagreement: Sequence[float], marginal: Sequence[Sequence[float]], reference: Sequence[float]
) -> Statistic:
    """Return AETTA's error estimate of resampled images, in [0, 1 - 1/K].

    It is disagreement / (H(marginal) / H(reference))^3 (Lee et al., CVPR 2024). Their H_max = log K assumes classes of
    equal size. Street scenes have long tails, so the entropy of the reference marginal replaces it. The ratio is
    clipped to [LEAST_RATIO, 1]: a mix more even than the reference gains nothing.
    """
    changed = np.asarray(disagreement, dtype=np.float64)
    marginals = np.asarray(marginal, dtype=np.float64)
    classes = marginals.shape[1]
    most = _entropy(np.asarray(reference, dtype=np.float64)) if reference else 0.0
    most = float(most) if most >= LEAST_ENTROPY else float(np.log(classes))

    def error(weights: Floats) -> Floats:
        ratio = (_entropy(weights @ marginals) / most).clip(LEAST_RATIO, 1.0)
        estimate: Floats = (weights @ changed + LEAST_DISAGREEMENT) / ratio**AETTA_EXPONENT
        return estimate.clip(0.0, 1.0 - 1.0 / classes)

    return error


def flip_share(consistency: Sequence[float]) -> Statistic:
    """Return the mean flip consistency of resampled images (0-1)."""
    shares = np.asarray(consistency, dtype=np.float64)
    return lambda weights: weights @ shares


def resampled_miou(counts: ImageCounts, classes: Weights = None) -> Statistic:
    """Return the mIoU over labelled classes of resampled images (0-1), from summed counts; `classes`: their weights."""
    tp, fp, fn = counts.arrays()
    # a draw without a class that counts says nothing, of either model
    return lambda weights: np.nan_to_num(labelled_mean_iou(weights @ tp, weights @ fp, weights @ fn, classes))


class Vote(NamedTuple):
    """One kind of evidence: whether the candidate is clearly better or clearly worse, and the check that says so."""

    name: str
    won: bool
    lost: bool
    check: Check
    advantage: Advantage


def cast_votes(
    candidate: ModelScores,
    incumbent: ModelScores,
    reference: Sequence[float],
    settings: GateSettings,
    seed: int,
    classes: Weights = None,
) -> list[Vote]:
    """Return every vote that the scores allow: three, and styled source as the fourth when both have it.

    `classes`: weights of the classes in mIoU (`gate.advanced.class_weights`).

    Without it, diversity must also exceed `margin_without_labels`: a candidate that confirms its own errors is more
    stable and more diverse too, but only by a little (docs/explanation/gate.md).
    """
    frames = len(candidate.flip_consistency)
    burst = burst_length(frame_correlation(candidate, incumbent, reference), frames)
    compare = partial(_compare, settings, seed)
    labelled = candidate.styled is not None and incumbent.styled is not None
    margins = {} if labelled else {DIVERSITY: settings.advanced.margin_without_labels}
    votes = [
        compare(pair, frames, burst, margin=margins.get(pair.name, 0.0))
        for pair in _frame_pairs(candidate, incumbent, reference)
    ]
    if candidate.styled and incumbent.styled:
        counts = [resampled_miou(model, classes) for model in (incumbent.styled, candidate.styled)]
        styled = _Pair(STYLED, "mIoU on restyled source", counts)
        images = len(candidate.styled.tp)
        votes.append(compare(styled, images, burst_length(neighbour_correlation([styled.advantage], images), images)))
    return votes


def frame_correlation(candidate: ModelScores, incumbent: ModelScores, reference: Sequence[float]) -> float:
    """Return how far the advantages on neighbouring hold-out frames are correlated (0-1), over all votes on frames."""
    pairs = _frame_pairs(candidate, incumbent, reference)
    return neighbour_correlation([pair.advantage for pair in pairs], len(candidate.flip_consistency))


class _Pair(NamedTuple):
    """What a vote compares: a statistic of incumbent and candidate; sign -1 if less is better."""

    name: str
    score: str
    models: Sequence[Statistic]
    sign: float = 1.0

    def advantage(self, weights: Floats) -> Floats:
        incumbent, candidate = self.models
        return self.sign * (candidate(weights) - incumbent(weights))


def _frame_pairs(candidate: ModelScores, incumbent: ModelScores, reference: Sequence[float]) -> list[_Pair]:
    models = (incumbent, candidate)
    error = [estimated_error(model.dropout_disagreement, model.marginal, reference) for model in models]
    norm = [diversity(model.gram) for model in models]
    flip = [flip_share(model.flip_consistency) for model in models]
    return [
        _Pair(DIVERSITY, "batch nuclear norm", norm),
        _Pair("vote_disagreement", "error estimated from dropout", error, sign=-1.0),
        _Pair("vote_flip", "flip consistency", flip),
    ]


def _compare(settings: GateSettings, seed: int, pair: _Pair, images: int, burst: int, margin: float = 0.0) -> Vote:
    """Cast one vote over `images` images drawn in bursts of `burst`; it is won by more than `margin`."""
    sure = paired_bootstrap(
        pair.advantage,
        images,
        confidence=settings.confidence,
        resamples=settings.advanced.bootstrap,
        seed=seed,
        burst=burst,
    )
    before, after = (float(model(np.full((1, images), 1.0 / images))[0]) for model in pair.models)
    won = sure.lower > max(margin, TOLERANCE)
    detail = (
        f"{pair.score} {before:.4f} -> {after:.4f}, advantage {sure.value:+.4f}, "
        f"bounds {sure.lower:+.4f} to {sure.upper:+.4f} at {settings.confidence:.0%} each side"
    )
    detail += f", without labels it needs over {margin:+.4f}" if margin else ""
    check = Check(name=pair.name, kind="vote", passed=won, value=sure.value, limit=sure.lower, detail=detail)
    return Vote(pair.name, won, sure.upper < -TOLERANCE, check, sure)


def _entropy(shares: Floats) -> Floats:
    """Return the entropy over the last axis (nats)."""
    logs = np.log(shares, out=np.zeros_like(shares), where=shares > 0)
    entropy: Floats = -(shares * logs).sum(axis=-1)
    return entropy
