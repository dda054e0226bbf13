"""Move the serving ref: after the verdict on a round, at a first release, for an operator. One function each.

Nothing else in mfmd promotes or rolls back. No torch: the control plane and the command line call this.
"""

from adapters.tracing import spans
from configs.settings import Settings
from daemon.gate.candidate import add_candidate, added_version, decided, into_manifest, scores_of, withdrawn
from daemon.gate.decide import GATE
from daemon.gate.shadow import end_shadow, new_trial, poll_shadow
from daemon.runtime.logs import get_logger
from storage.errors import DurabilityLost, ServingChanged, StorageError
from storage.gate.conditions import ConditionStore
from storage.gate.pause import read_pause
from storage.layout import StateLayout
from storage.registry.manifest import HistoryEvent, Ref
from storage.registry.refs import check_reason
from storage.registry.registry import CheckpointRegistry
from storage.registry.shadow_record import ShadowRecords
from storage.rounds.folder import RoundFolder, RoundStore
from storage.rounds.records import RoundScores, RoundSpec, Stage, Verdict

NO_REASON = "no reason given"
"""Reason in the history of a move without a reason."""

log = get_logger(__name__)


def advance_round(
    registry: CheckpointRegistry, folder: RoundFolder, settings: Settings, *, waited: float = 0.0, stopped: bool = False
) -> Stage:
    """Advance a round whose process has ended as far as possible.

    Return its stage: a final one, `shadowing`, or `suggested` while it waits for a person.

    Each stage may run again after a crash: decisions stay, unfinished steps are finished. While the round is
    `shadowing`, call again with the seconds `waited` since the last record of the wait; `stopped` ends the wait.
    Raises StorageError when the round left no scores or the serving version is unknown, CorruptCheckpoint when the
    incumbent's files are damaged.
    """
    while True:
        match folder.record().stage:
            case "promoted" | "rejected" | "failed" | "suggested" as end:
                return end
            case "judged":
                return _act_on_verdict(registry, folder, settings)
            case "shadowing":
                verdict = poll_shadow(registry, folder, _records(settings), waited=waited, stopped=stopped)
                if verdict is None:
                    return "shadowing"
                into_manifest(registry, folder, verdict)
                _conclude(folder, verdict)
            case _:
                _judge_scores(registry, folder, settings)


def _judge_scores(registry: CheckpointRegistry, folder: RoundFolder, settings: Settings) -> None:
    """Decide on `scores.json`. Next is `judged`, or `shadowing` for a candidate that first runs in the shadow."""
    spec, scores = folder.spec(), scores_of(folder)
    counts = {reason: len(frames) for reason, frames in spec.left_out.items()}
    with spans.span("mfmd.gate", round=spec.round):
        verdict = decided(registry, folder, settings, spec, scores).model_copy(update={"left_out": counts})
        spans.note(decision=verdict.decision, reason=verdict.reason)
    if settings.gate.policy == "always":
        log.warning("gate_policy_always", round=spec.round, decision=verdict.decision, reason=verdict.reason)
    shadows = settings.gate.shadow_images > 0 and settings.serving.shadow_fraction > 0
    if verdict.decision == "accepted" and shadows:
        version = added_version(registry, spec) or add_candidate(registry, folder, spec, scores, verdict, judged=False)
        folder.enter("shadowing", trial=new_trial(settings, version, verdict))
    else:
        _conclude(folder, verdict)


def _conclude(folder: RoundFolder, verdict: Verdict) -> None:
    folder.write_verdict(verdict)
    folder.enter("judged")


def _act_on_verdict(registry: CheckpointRegistry, folder: RoundFolder, settings: Settings) -> Stage:
    """Carry out `verdict.json`: an accepted candidate becomes a version and serves; the history has every verdict.

    Where `_waits`, it waits as a suggestion (`suggestion.py`): then the stage is `suggested`.

    An operator's move during the round wins: then the candidate does not serve, and the verdict is inconclusive. Next
    is `promoted`, `rejected` or `failed`. Old versions are pruned.
    """
    spec, scores, verdict = folder.spec(), scores_of(folder), folder.verdict()
    if verdict is None:
        raise StorageError(f"{folder.path / 'verdict.json'}: missing; the round folder was modified")
    suggests = verdict.decision == "accepted" and _waits(registry, spec, settings)
    if suggests:
        version = added_version(registry, spec) or add_candidate(registry, folder, spec, scores, verdict)
        verdict = verdict.model_copy(update={"version": version})
        folder.write_verdict(verdict)
    elif verdict.decision == "accepted":
        verdict = _promote(registry, folder, spec, scores, verdict)
    if verdict.decision != "accepted":
        _record(registry, verdict, spec)
    if folder.record().trial is not None:
        end_shadow(registry, f"round {folder.number}: {verdict.decision}")
    if suggests:
        folder.remove_others()
        return folder.enter("suggested", reason=f"version {verdict.version} waits for a decision: {verdict.reason}")
    return end_round(registry, folder, settings, verdict, failed=scores.status == "failed")


def _waits(registry: CheckpointRegistry, spec: RoundSpec, settings: Settings) -> bool:
    """Return whether an accepted candidate waits for a person: by the policy, or in a pause if nobody asked for it."""
    if spec.trigger == "manual" or read_pause(StateLayout(settings.state)) is None:
        return settings.gate.policy == "manual"
    added = added_version(registry, spec)  # a kill may have come after its promotion, and the pause after that
    return added is None or added in registry.state().never_served


def end_round(
    registry: CheckpointRegistry, folder: RoundFolder, settings: Settings, verdict: Verdict, *, failed: bool = False
) -> Stage:
    """Write the final verdict, its line of history, and the final stage; remove old versions."""
    folder.write_verdict(verdict)
    if verdict.decision != "accepted":
        _record(registry, verdict, folder.spec())
    not_promoted: Stage = "failed" if failed else "rejected"
    folder.remove_others()
    stage = folder.enter("promoted" if verdict.decision == "accepted" else not_promoted, reason=verdict.reason)
    _prune(registry, settings)
    return stage


def release(registry: CheckpointRegistry, version: int, by: str, reason: str) -> Ref | None:
    """Serve `version` if nothing serves yet; return None when something does.

    Raises UnknownVersion, CorruptCheckpoint, or StorageError when the serving ref is damaged or missing: planes still
    serve the version that it named.
    """
    if registry.serving() is not None:
        return None
    return registry.promote(version, by=by, reason=reason)


def roll_back(
    registry: CheckpointRegistry, *, to: int | None, by: str, reason: str, expected: int | None = None
) -> Ref:
    """Serve an earlier version again for an operator: `to`, or the one that served before. It does not need the gate.

    Raises like `CheckpointRegistry.roll_back`; then nothing moved.
    """
    return registry.roll_back(to=to, by=by, reason=reason.strip() or NO_REASON, expected=expected)


def promote(
    registry: CheckpointRegistry,
    version: int,
    *,
    by: str,
    reason: str,
    expected: int | None = None,
    round: int | None = None,
) -> Ref:
    """Serve any version for an operator, also one that was rolled back. It does not need the gate.

    `round`: the round whose suggestion an operator approved.
    Raises like `CheckpointRegistry.promote`, or InvalidReason; then nothing moved.
    """
    check_reason(reason)
    return registry.promote(version, by=by, reason=reason.strip() or NO_REASON, expected=expected, round=round)


def recall_version(registry: CheckpointRegistry, version: int, *, reason: str, expected: int) -> Ref:
    """Serve a known-good version again, for the gate (`recall.py`), only while `expected` serves.

    Raises like `CheckpointRegistry.promote`; then nothing moved.
    """
    return registry.promote(version, by=GATE, reason=reason, expected=expected, refuse_rolled_back=True, recalled=True)


def best_versions(layout: StateLayout) -> set[int]:
    """Return the versions that are best in a known condition: retention keeps them. Raises StorageError."""
    known = ConditionStore(layout.conditions).read()
    return {item.best for item in known.conditions if item.best is not None} if known else set()


def spared_versions(layout: StateLayout) -> set[int]:
    """Return the versions that retention keeps beside those of the registry's own rules. Raises StorageError."""
    verdicts = [folder.verdict() for folder in RoundStore(layout.rounds).at("suggested")]
    return best_versions(layout) | {it.version for it in verdicts if it is not None and it.version is not None}


def _promote(
    registry: CheckpointRegistry, folder: RoundFolder, spec: RoundSpec, scores: RoundScores, verdict: Verdict
) -> Verdict:
    """Add the accepted candidate and let it serve; return the verdict with its version."""
    version = added_version(registry, spec) or add_candidate(registry, folder, spec, scores, verdict)
    serving = registry.serving()
    # After a crash it may serve already, or have served and been rolled back: then there is nothing left to do.
    done = (serving is not None and serving.version == version) or version in registry.state().rolled_back
    try:
        if not done:
            registry.promote(
                version,
                by=GATE,
                reason=verdict.reason,
                round=spec.round,
                expected=spec.incumbent,
                refuse_rolled_back=True,
            )
    except ServingChanged as error:
        void = withdrawn(verdict, str(error))
        into_manifest(registry, folder, void)
        return void
    return verdict.model_copy(update={"version": version})


def _prune(registry: CheckpointRegistry, settings: Settings) -> None:
    """Remove old versions; none while a damaged or missing manifest or ref hides which must stay."""
    try:
        registry.prune(settings.registry.keep_versions, spared_versions(StateLayout(settings.state)))
        _records(settings).prune(registry.versions())
    except DurabilityLost:
        raise
    except StorageError as error:
        log.error("versions_not_pruned", reason=str(error))


def _records(settings: Settings) -> ShadowRecords:
    return ShadowRecords(StateLayout(settings.state).shadow)


def _record(registry: CheckpointRegistry, verdict: Verdict, spec: RoundSpec) -> None:
    """Write one line of history for a candidate that the gate did not accept, also when repeated after a kill.

    The line omits its version when an operator has served that meanwhile: the operator's decision wins.
    """
    if any((event.round, event.at) == (spec.round, verdict.at) for event in registry.history()):
        return
    added = added_version(registry, spec)
    event = {
        "at": verdict.at,
        "event": verdict.decision,
        "version": None if added in registry.state().served else added,
        "previous": spec.incumbent,
        "round": spec.round,
        "by": GATE,
        "reason": verdict.reason,
    }
    registry.record(HistoryEvent.model_validate(event))
