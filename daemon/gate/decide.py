"""The gate: a pure function over records that decides whether a candidate may serve (docs/explanation/gate.md).

Without labels nobody can prove an improvement, and most self-trained candidates of a model that is already adapted are
worse (docs/explanation/sources.md). So the healthy default is to keep the incumbent: a veto rejects, and only votes of
different kinds together accept. numpy only, no torch.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from configs.gate import GateSettings
from daemon.gate.vetoes import agreement, completed, source_class_iou, source_miou, vanished_class, weights_vetoes
from daemon.gate.votes import DISAGREEMENT, STYLED, Vote, cast_votes
from storage.rounds.records import Check, ImageCounts, ModelScores, RoundScores, RoundSpec, Verdict

GATE = "gate"
"""Name under which the gate moves a ref."""


def decide(
    spec: RoundSpec, scores: RoundScores, settings: GateSettings, class_names: Sequence[str], *, at: float
) -> Verdict:
    """Return the verdict on a round, with every check that was possible.

    rejected: the round failed, a veto failed, or most votes are clearly lost. accepted: no veto failed and enough votes
    are won. inconclusive: everything else. The incumbent stays unless accepted. Deterministic: the bootstrap is seeded
    by the round's number. `at` is the verdict's time (Unix, seconds).
    """
    ruling = _judge(spec, scores, settings, class_names)
    return Verdict(round=spec.round, decision=ruling.decision, reason=ruling.reason, checks=list(ruling.checks), at=at)


class _Ruling(NamedTuple):
    decision: Literal["accepted", "rejected", "inconclusive"]
    reason: str
    checks: Sequence[Check] = ()


def _judge(spec: RoundSpec, scores: RoundScores, settings: GateSettings, class_names: Sequence[str]) -> _Ruling:
    candidate, incumbent = scores.candidate, scores.incumbent
    checks = [completed(scores)]
    if scores.status == "failed":
        return _rejected(checks)
    if scores.status == "stopped" or candidate is None or incumbent is None:
        return _Ruling("inconclusive", f"no scored candidate: {checks[0].detail}", checks)
    checks += weights_vetoes(candidate)
    if not all(check.passed for check in checks):
        return _rejected(checks)
    problem = _incomparable(spec, scores, len(class_names))
    if problem is not None:
        return _Ruling("inconclusive", problem, checks)
    checks += _damage(scores, candidate, incumbent, settings, class_names, seed=spec.round)
    if not all(check.passed for check in checks):
        return _rejected(checks)
    frames = len(candidate.flip_consistency)
    if frames < settings.advanced.min_holdout:
        return _Ruling(
            "inconclusive", f"{frames} hold-out frames; the gate needs {settings.advanced.min_holdout}", checks
        )
    votes = cast_votes(candidate, incumbent, scores.reference_marginal, settings, seed=spec.round)
    return _count(votes, settings, [*checks, *(vote.check(settings.confidence) for vote in votes)])


def _rejected(checks: Sequence[Check]) -> _Ruling:
    failed = "; ".join(check.detail for check in checks if not check.passed)
    return _Ruling("rejected", f"veto: {failed}", checks)


def _damage(
    scores: RoundScores,
    candidate: ModelScores,
    incumbent: ModelScores,
    settings: GateSettings,
    class_names: Sequence[str],
    seed: int,
) -> list[Check]:
    """Run the vetoes against damage: on hold-out frames, and on source images if there are any."""
    checks = []
    if candidate.flip_consistency:
        reference = scores.reference_marginal
        checks.append(vanished_class(candidate, incumbent, scores.released, reference, settings, class_names))
        checks.append(agreement(candidate, settings))
    if candidate.source and scores.released and scores.released.source:
        anchor = scores.released.source
        checks.append(source_miou(candidate.source, anchor, settings))
        checks.append(source_class_iou(candidate.source, anchor, settings, class_names, seed))
    return checks


def _count(votes: Sequence[Vote], settings: GateSettings, checks: Sequence[Check]) -> _Ruling:
    """Count votes. With source, `votes_with_source` are needed, disagreement among them; without source, all.

    Styled source must not be lost: a candidate that confirms its own errors is stable and confident, which wins the
    three votes without labels. Only true labels detect it.
    """
    won = [vote.name for vote in votes if vote.won]
    lost = [vote.name for vote in votes if vote.lost]
    with_labels = any(vote.name == STYLED for vote in votes)
    needed = settings.advanced.votes_with_source if with_labels else len(votes)
    tally = f"{len(won)} of {len(votes)} votes won ({', '.join(won) or 'none'}), {needed} needed"
    if len(won) >= needed and DISAGREEMENT in won and STYLED not in lost:
        return _Ruling("accepted", tally, checks)
    if 2 * len(lost) > len(votes):
        return _Ruling("rejected", f"worse than the incumbent: lost {', '.join(lost)}", checks)
    if DISAGREEMENT not in won:
        tally += f", {DISAGREEMENT} among them"
    if STYLED in lost:
        tally += f"; {STYLED} is lost"
    return _Ruling("inconclusive", tally, checks)


def _incomparable(spec: RoundSpec, scores: RoundScores, classes: int) -> str | None:
    """Return why candidate and incumbent cannot be compared, in one sentence with the remedy; None when they can."""
    candidate, incumbent = scores.candidate, scores.incumbent
    if candidate is None or incumbent is None:
        return "scores.json lacks the candidate's or the incumbent's scores; run the round again"
    if not incumbent.finite:
        return f"version {spec.incumbent}, which serves, has non-finite values; roll back to an intact version"
    return _frames_problem(candidate, incumbent, classes) or _source_problem(
        spec, scores, candidate, incumbent, classes
    )


def _frames_problem(candidate: ModelScores, incumbent: ModelScores, classes: int) -> str | None:
    """Return what is wrong with the scores on hold-out frames."""
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
    """Return what is wrong with the scores on source images: all must exist, or none when none is expected."""
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
