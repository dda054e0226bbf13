"""What a candidate gains or costs in conditions other than the newest one, against the best version there.

Pure, numpy only.
"""

from collections.abc import Sequence

from configs.gate import GateSettings
from daemon.gate.bursts import Floats, burst_length, neighbour_correlation
from daemon.gate.shapes import odd_scores, sound_counts
from daemon.gate.votes import TOLERANCE, cast_votes, paired_bootstrap, resampled_miou
from storage.gate.conditions import Condition
from storage.rounds.records import ConditionScores, ImageCounts, ModelScores, RoundScores
from storage.rounds.verdict import Check, ConditionCost


def costs(
    name: str, candidate: ModelScores, scores: RoundScores, settings: GateSettings, seed: int, names: Sequence[str]
) -> list[ConditionCost]:
    """Return what candidate `name` gains or loses in each other condition; a negative gain is a cost.

    In the condition of the labelled source it is true mIoU on source validation images; elsewhere the batch nuclear
    norm of golden frames, and the candidate is better or worse there by most of the three votes on frames. Better also
    needs the vote of the norm: without it the other two credit models that are ten points worse.
    """
    return [
        _labelled(item, candidate.source, item.best.source, settings, seed, names)
        if item.labelled and candidate.source and item.best and item.best.source
        else _on_golden(item, name, scores.reference_marginal, settings, seed, len(names))
        for item in scores.elsewhere
    ]


def _unknown(scores: ConditionScores, why: str) -> ConditionCost:
    return ConditionCost(number=scores.number, name=scores.name, version=scores.version, detail=scores.missing or why)


def _on_golden(
    scores: ConditionScores, name: str, reference: Sequence[float], settings: GateSettings, seed: int, classes: int
) -> ConditionCost:
    best, here = scores.best, scores.candidates.get(name)
    if best is None or here is None or not best.finite or not here.finite:
        return _unknown(scores, "no finite scores of both")
    images = len(here.gram)
    if not images:
        return _unknown(scores, "no golden frame was scored")
    if odd_scores(best, images, classes) or odd_scores(here, images, classes):
        return _unknown(scores, "scores.json: not finite numbers of one length")
    votes = cast_votes(here, best, reference, settings, seed)
    first = votes[0]
    won, lost = (sum(kind) for kind in zip(*((vote.won, vote.lost) for vote in votes), strict=True))
    return _unknown(scores, "").model_copy(
        update={
            "value": first.advantage.value,
            "lower": first.advantage.lower,
            "upper": first.advantage.upper,
            "images": len(here.gram),
            "better": first.won and 2 * won > len(votes) and lost == 0,
            "worse": 2 * lost > len(votes),
            "detail": f"{won} of {len(votes)} votes won, {lost} lost; {first.check.detail}",
        }
    )


def _labelled(
    scores: ConditionScores,
    mine: ImageCounts,
    best: ImageCounts,
    settings: GateSettings,
    seed: int,
    names: Sequence[str],
) -> ConditionCost:
    images, classes = len(mine.tp), len(names)
    if not images or not sound_counts(mine, images, classes) or not sound_counts(best, images, classes):
        return _unknown(scores, "scores.json: source counts are not numbers of one shape")
    after, before = (resampled_miou(counts, settings.weights(names)) for counts in (mine, best))

    def gain(weights: Floats) -> Floats:
        return after(weights) - before(weights)

    sure = paired_bootstrap(
        gain,
        images,
        confidence=settings.confidence,
        resamples=settings.advanced.bootstrap,
        seed=seed,
        burst=burst_length(neighbour_correlation([gain], images), images),
    )
    return _unknown(scores, "").model_copy(
        update={
            "value": sure.value,
            "lower": sure.lower,
            "upper": sure.upper,
            "images": images,
            "labels": True,
            "better": sure.lower > TOLERANCE,
            "worse": sure.upper < -TOLERANCE,
            "detail": f"mIoU on source {sure.value:+.4f}, bounds {sure.lower:+.4f} to {sure.upper:+.4f} "
            f"at {settings.confidence:.0%} each side",
        }
    )


def takes_over(cost: ConditionCost, condition: Condition) -> bool:
    """Return whether a promoted candidate becomes the best version of another condition, by what it gains there.

    Votes alone do not displace a version that a round made for that condition: each version is better on the frames it
    learned from, and the votes err on others (docs/explanation/recall.md). Labels may. A version that was best only
    because it served, or the released one, gives way to votes. Nothing follows from a comparison with another version
    than the one that is best now.
    """
    if not cost.better or cost.version != condition.best:
        return False
    return cost.labels or condition.best != condition.made


def forgetting(found: Sequence[ConditionCost], settings: GateSettings, *, recalls: bool) -> Check:
    """Check that what a candidate costs elsewhere is allowed by `gate.forgetting`. `recalls`: recall is on.

    With `recall` a cost is allowed while recall is on, because retention keeps the version that is better there.
    """
    worse = [item for item in found if item.worse]
    allowed = settings.forgetting == "allow" or (settings.forgetting == "recall" and recalls)
    named = "; ".join(f"{item.name}: worse than version {item.version} ({item.detail})" for item in worse)
    detail = named or f"clearly worse in none of {len(found)} other conditions"
    if worse and allowed:
        detail += f"; allowed by gate.forgetting: {settings.forgetting}"
    passed = not worse or allowed
    return Check(name="forgetting", kind="veto", passed=passed, value=float(len(worse)), limit=0.0, detail=detail)


def kept_for_source(scores: RoundScores, settings: GateSettings, *, recalls: bool) -> int | None:
    """Return the version that serves again when the condition of the labelled source returns; None without one.

    With it, what a candidate loses on source is a cost in another condition, which `gate.forgetting: recall` allows.
    None when the labelled source is of the newest condition, when its best version cannot be read, or without recall.
    """
    if settings.forgetting != "recall" or not recalls:
        return None
    return next((it.version for it in scores.elsewhere if it.labelled and it.best and it.best.source), None)
