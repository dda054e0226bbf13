"""The gate: a pure function over records that decides whether a candidate may serve (docs/explanation/gate.md).

Without labels nobody can prove an improvement, so the healthy default is to keep the incumbent: a veto rejects, and
only votes of different kinds together accept. numpy only, no torch.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

from configs.gate import GateSettings
from daemon.gate.bursts import burst_length, frames_needed
from daemon.gate.canary import CANARY, canary_vote, odd_canary, undecided
from daemon.gate.forgetting import costs, forgetting, kept_for_source
from daemon.gate.shapes import odd_scores, sound_counts
from daemon.gate.vetoes import agreement, completed, source_class_iou, source_miou, vanished_class, weights_vetoes
from daemon.gate.votes import DIVERSITY, STYLED, Vote, Weights, cast_votes, frame_correlation
from storage.rounds.records import ImageCounts, ModelScores, RoundScores, RoundSpec
from storage.rounds.verdict import CandidateRuling, Check, ConditionCost, Verdict

Decision = Literal["accepted", "rejected", "inconclusive"]
Ruling = tuple[Decision, str, list[Check]]
GATE = "gate"
"""Name under which the gate moves a ref."""


def decide(
    spec: RoundSpec,
    scores: RoundScores,
    settings: GateSettings,
    class_names: Sequence[str],
    *,
    at: float,
    recalls: bool = True,
    twins: Mapping[str, int] | None = None,
) -> Verdict:
    """Return the verdict on a round, with every check that was possible: the best candidate that passes is accepted.

    Without one it is the verdict on the recipe's own candidate. rejected: the round failed, a veto failed, or most
    votes are clearly lost. accepted: no veto failed and enough votes are won. inconclusive: everything else. The
    incumbent stays unless accepted. Deterministic: the bootstrap is seeded by the round's number. `at` is the verdict's
    time (Unix, seconds); `recalls`: whether recall is on; `twins`: candidates with the weights of a version
    that was rolled back, and that version; they are never accepted.
    """
    if settings.policy == "source_free":
        scores = _without_source(scores)
    found = {
        name: costs(name, model, scores, settings, spec.round, class_names)
        for name, model in scores.candidates().items()
    }
    rulings = {
        name: _judge(
            spec,
            scores.model_copy(update={"candidate": model}),
            settings,
            class_names,
            forgetting(found[name], settings, recalls=recalls) if found[name] else None,
            kept_for_source(scores, settings, recalls=recalls),
        )
        for name, model in scores.candidates().items()
    } or {scores.name: _judge(spec, scores, settings, class_names)}
    if settings.policy == "always" and all(decision != "accepted" for decision, _, _ in rulings.values()):
        rulings = {name: _unchecked(ruling) for name, ruling in rulings.items()}
    for twin, version in (twins or {}).items():
        if rulings[twin][0] == "accepted":
            reason = f"the candidate's weights are those of version {version}, which was rolled back"
            rulings[twin] = "rejected", reason, rulings[twin][2]
    name = _best(rulings)
    decision, reason, checks = rulings[name]
    return Verdict(
        round=spec.round,
        decision=decision,
        reason=f"{name}: {reason}" if len(rulings) > 1 else reason,
        checks=checks,
        at=at,
        candidate=name,
        candidates=tuple(_in_short(name, ruling, found.get(name, ())) for name, ruling in rulings.items()),
    )


def _best(rulings: Mapping[str, Ruling]) -> str:
    """Return the best accepted candidate: by canary labels, then by votes won, then better than others in most votes.

    Advantages of different votes cannot be added, so candidates are ranked in each. Without an accepted one, the first.
    """
    votes = {
        name: {check.name: check for check in checks if check.kind == "vote"}
        for name, (decision, _, checks) in rulings.items()
        if decision == "accepted"
    }

    def standing(name: str) -> tuple[bool, int, int]:
        mine = votes[name]
        by_labels = CANARY in mine and mine[CANARY].passed
        won = sum(check.passed for check in mine.values())
        beaten = sum(
            (mine[vote].value or 0.0) > (check.value or 0.0)
            for other in votes.values()
            for vote, check in other.items()
            if vote in mine
        )
        return by_labels, won, beaten

    return max(votes, key=standing, default=next(iter(rulings)))


def _in_short(name: str, ruling: Ruling, found: Sequence[ConditionCost]) -> CandidateRuling:
    decision, reason, checks = ruling
    passed = tuple(check.name for check in checks if check.passed)
    failed = tuple(check.name for check in checks if not check.passed)
    return CandidateRuling(
        name=name, decision=decision, reason=reason, passed=passed, failed=failed, elsewhere=tuple(found)
    )


def _without_source(scores: RoundScores) -> RoundScores:
    def bare(model: ModelScores | None) -> ModelScores | None:
        return model and model.model_copy(update={"source": None, "styled": None})

    models = {name: bare(getattr(scores, name)) for name in ("released", "incumbent", "candidate")}
    others = {name: bare(model) for name, model in scores.others.items()}
    return scores.model_copy(update={**models, "others": others})


def _unchecked(ruling: Ruling) -> Ruling:
    """Accept a candidate that is complete, finite and of the incumbent's tensors (`gate.policy: always`)."""
    decision, reason, checks = ruling
    if not {"completed", "finite", "tensors"} <= {check.name for check in checks if check.passed}:
        return ruling
    return "accepted", f"gate.policy is always; without it: {decision}, {reason}", checks


def _judge(
    spec: RoundSpec,
    scores: RoundScores,
    settings: GateSettings,
    class_names: Sequence[str],
    forgotten: Check | None = None,
    kept: int | None = None,
) -> Ruling:
    candidate, incumbent = scores.candidate, scores.incumbent
    checks = [completed(scores)]
    if scores.status == "failed":
        return "rejected", _failed(checks), checks
    if scores.status == "stopped" or candidate is None or incumbent is None:
        return "inconclusive", f"no scored candidate: {checks[0].detail}", checks
    checks += weights_vetoes(candidate)
    if veto := _failed(checks):
        return "rejected", veto, checks
    if problem := _incomparable(spec, scores, candidate, incumbent, len(class_names), settings):
        return "inconclusive", problem, checks
    checks += _vetoes(spec, scores, candidate, incumbent, settings, class_names, kept)
    if forgotten is not None:
        checks.append(forgotten)
    weights = settings.weights(class_names)
    problem = odd_canary(candidate, incumbent, scores.canary_problem, len(class_names))
    canary = None if problem else canary_vote(candidate, incumbent, settings, spec.round, weights)
    checks += [canary.check] if canary else []
    if veto := _failed([check for check in checks if check.kind == "veto"]):
        return "rejected", veto, checks
    if problem:
        return "inconclusive", problem, checks
    return _by_evidence(spec, scores, candidate, incumbent, settings, checks, canary, weights)


def _by_evidence(
    spec: RoundSpec,
    scores: RoundScores,
    candidate: ModelScores,
    incumbent: ModelScores,
    settings: GateSettings,
    checks: list[Check],
    canary: Vote | None,
    weights: Weights,
) -> Ruling:
    """Rule by canary labels; where these do not decide, by votes, unless `gate.policy` is canary."""
    if canary is not None and (canary.won or canary.lost):
        how = "better" if canary.won else "worse"
        return ("accepted" if canary.won else "rejected"), f"{how} than the incumbent: {canary.check.detail}", checks
    if settings.policy == "canary":
        return "inconclusive", undecided(canary), checks
    decision, reason, checks = _by_votes(spec, scores, candidate, incumbent, settings, checks, weights)
    if decision == "accepted" and canary and canary.check.kind == "vote" and canary.advantage.value < 0:
        return "inconclusive", f"{reason}; but {canary.check.detail}", checks
    return decision, reason, checks


def _vetoes(
    spec: RoundSpec,
    scores: RoundScores,
    candidate: ModelScores,
    incumbent: ModelScores,
    settings: GateSettings,
    class_names: Sequence[str],
    kept: int | None,
) -> Iterator[Check]:
    """Yield every veto on scores that the round made possible; `kept` as `kept_for_source`."""
    if candidate.flip_consistency:
        yield vanished_class(scores, candidate, incumbent, settings, class_names)
        yield agreement(candidate, settings)
    if candidate.source and scores.released and scores.released.source:
        anchor = scores.released.source
        yield source_miou(candidate.source, anchor, settings, class_names, kept)
        yield source_class_iou(candidate.source, anchor, settings, class_names, spec.round, kept)


def _by_votes(
    spec: RoundSpec,
    scores: RoundScores,
    candidate: ModelScores,
    incumbent: ModelScores,
    settings: GateSettings,
    checks: list[Check],
    weights: Weights,
) -> Ruling:
    """Rule by evidence without labels of the target."""
    frames, least = len(candidate.flip_consistency), settings.advanced.min_holdout
    if frames < least:
        of = f" of {spec.conditions.name}" if spec.conditions else ""
        return "inconclusive", f"{frames} hold-out frames{of}; the gate needs {least}, {least - frames} more", checks
    checks.append(holdout_bursts(frame_correlation(candidate, incumbent, scores.reference_marginal), frames, least))
    if not checks[-1].passed:
        return "inconclusive", checks[-1].detail, checks
    votes = cast_votes(candidate, incumbent, scores.reference_marginal, settings, spec.round, weights)
    return *_count(votes, settings), [*checks, *(vote.check for vote in votes)]


def holdout_bursts(correlation: float, frames: int, least: int) -> Check:
    """Check that the hold-out frames are at least `least` independent bursts, given the correlation of neighbours."""
    length = burst_length(correlation, frames)
    bursts = frames / length
    detail = f"{frames} hold-out frames are {bursts:.1f} independent bursts of {length}; the gate needs {least}"
    if bursts < least:
        detail += f", about {max(1, frames_needed(correlation, least) - frames)} more frames"
    passed = bursts >= least
    return Check(name="holdout_bursts", kind="evidence", passed=passed, value=bursts, limit=float(least), detail=detail)


def _failed(checks: Sequence[Check]) -> str:
    failed = "; ".join(check.detail for check in checks if not check.passed)
    return failed and f"veto: {failed}"


def _count(votes: Sequence[Vote], settings: GateSettings) -> tuple[Decision, str]:
    """Count votes. With source `votes_with_source` are needed, diversity among them; without source, all.

    Restyled source may never be lost: a candidate that confirms its own errors is stable and confident, which wins the
    votes without labels. Only true labels detect it.
    """
    won = [vote.name for vote in votes if vote.won]
    lost = [vote.name for vote in votes if vote.lost]
    with_labels = any(vote.name == STYLED for vote in votes)
    needed = settings.advanced.votes_with_source if with_labels else len(votes)
    tally = f"{len(won)} of {len(votes)} votes won ({', '.join(won) or 'none'}), {needed} needed"
    if len(won) >= needed and DIVERSITY in won and STYLED not in lost:
        return "accepted", tally
    if 2 * len(lost) > len(votes):
        return "rejected", f"worse than the incumbent: lost {', '.join(lost)}"
    if with_labels and DIVERSITY not in won:
        tally += f", {DIVERSITY} among them"
    if STYLED in lost:
        tally += f"; {STYLED} is lost"
    return "inconclusive", tally


def _incomparable(
    spec: RoundSpec,
    scores: RoundScores,
    candidate: ModelScores,
    incumbent: ModelScores,
    classes: int,
    settings: GateSettings,
) -> str | None:
    """Return why candidate and incumbent cannot be compared, in one sentence with the remedy; None when they can."""
    if not incumbent.finite:
        return f"version {spec.incumbent}, which serves, has non-finite values; roll back to an intact version"
    images = len(candidate.flip_consistency)
    for who, model in (("candidate", candidate), ("incumbent", incumbent)):
        if problem := odd_scores(model, images, classes):
            return f"scores.json: {problem[0]} of the {who} is not {problem[1]} finite numbers; run the round again"
    ignored = "source_free" in (settings.policy, spec.settings.get("gate", {}).get("policy"))
    expected = spec.settings.get("source") is not None and not ignored
    counts = [candidate.source, incumbent.source, scores.released.source if scores.released else None]
    if images:
        counts += [candidate.styled, incumbent.styled]
    return _source_problem(counts, classes, expected=expected)


def _source_problem(counts: Sequence[ImageCounts | None], classes: int, *, expected: bool) -> str | None:
    """Return what is wrong with the counts on source images: all must exist, or none when none is expected."""
    present = [item for item in counts if item is not None]
    if not present and not expected:
        return None
    if len(present) < len(counts):
        return "labelled source is configured but was not scored; give it at least one validation image"
    shape = (len(present[0].tp), classes)
    if not present[0].tp or not all(sound_counts(it, *shape) for it in present):
        return f"scores.json: source counts are not {list(shape)} numbers for every model; run the round again"
    return None
