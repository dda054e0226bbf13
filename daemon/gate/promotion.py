"""Carry a round out to its end: judge its scores, let an accepted candidate serve, record the rest.

Moves that no verdict asks for are in `moves.py`. No torch: the control plane and the command line call this.
"""

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from adapters.scoring.scores.iou import labelled_mean_iou
from adapters.tracing import spans
from configs.settings import Settings
from daemon.gate.decide import GATE, decide
from daemon.gate.moves import spared_versions
from daemon.gate.shadow import end_shadow, new_trial, poll_shadow
from daemon.runtime.logs import get_logger
from storage.durable.digest import digest_of
from storage.errors import CorruptCheckpoint, DurabilityLost, ServingChanged, StorageError, UnknownVersion
from storage.gate.pause import read_pause
from storage.layout import StateLayout
from storage.registry.manifest import HistoryEvent, Manifest
from storage.registry.provenance import code_digest, library_versions, settings_hash
from storage.registry.registry import CheckpointRegistry
from storage.registry.shadow_record import ShadowRecords
from storage.registry.versions import WEIGHTS
from storage.registry.weight_changes import differing_tensors, tensor_headers
from storage.rounds.folder import RoundFolder
from storage.rounds.records import ModelScores, RoundScores, RoundSpec
from storage.rounds.verdict import Stage, Verdict

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
    spec, scores = folder.spec(), _scores(folder)
    counts = {reason: len(frames) for reason, frames in spec.left_out.items()}
    with spans.span("mfmd.gate", round=spec.round):
        verdict = _decided(registry, folder, settings, spec, scores).model_copy(update={"left_out": counts})
        spans.note(decision=verdict.decision, reason=verdict.reason)
    if settings.gate.policy == "always":
        log.warning("gate_policy_always", round=spec.round, decision=verdict.decision, reason=verdict.reason)
    shadows = settings.gate.shadow_images > 0 and settings.serving.shadow_fraction > 0
    if verdict.decision == "accepted" and shadows:
        version = _added(registry, spec) or _add(registry, folder, spec, scores, verdict, judged=False)
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
    spec, scores, verdict = folder.spec(), _scores(folder), folder.verdict()
    if verdict is None:
        raise StorageError(f"{folder.path / 'verdict.json'}: missing; the round folder was modified")
    suggests = verdict.decision == "accepted" and _waits(registry, spec, settings)
    if suggests:
        version = _added(registry, spec) or _add(registry, folder, spec, scores, verdict)
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
    added = _added(registry, spec)  # a kill may have come after its promotion, and the pause after that
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


def _scores(folder: RoundFolder) -> RoundScores:
    scores = folder.scores()
    if scores is None:
        raise StorageError(f"round {folder.number} has no scores.json: it crashed or was killed; see {folder.log}")
    return scores


def into_manifest(registry: CheckpointRegistry, folder: RoundFolder, verdict: Verdict) -> None:
    """Write the verdict of a candidate that was registered before it. Damage there must not stop the gate."""
    trial = folder.record().trial
    version = trial.version if trial is not None else verdict.version
    try:
        if version is not None:
            registry.judged(version, verdict.model_dump(mode="json"))
    except (UnknownVersion, CorruptCheckpoint) as error:
        log.error("verdict_not_in_manifest", round=folder.number, reason=str(error))


def _decided(
    registry: CheckpointRegistry, folder: RoundFolder, settings: Settings, spec: RoundSpec, scores: RoundScores
) -> Verdict:
    """Return the gate's verdict, with facts beyond the gate: the candidate's file, and the serving version."""
    serving = registry.serving()
    unchanged = serving is not None and serving.version == spec.incumbent
    if scores.status == "completed" and scores.candidate is not None and unchanged:
        incumbent = registry.weight_files(spec.incumbent)
        found = {
            name: model.model_copy(
                update={
                    "missing": sorted(
                        {*model.missing, *_other_tensors(registry, _weights(folder, scores, name), incumbent)}
                    )
                }
            )
            for name, model in scores.candidates().items()
        }
        candidate = found.pop(scores.name)
        scores = scores.model_copy(update={"candidate": candidate, "others": found})
    names = [entry.name for entry in settings.classes]
    recalls = settings.recall.advanced.enabled and settings.conditions.advanced.enabled
    twins = _rolled_back_twins(registry, {name: _weights(folder, scores, name) for name in scores.candidates()})
    verdict = decide(spec, scores, settings.gate, names, at=time.time(), recalls=recalls, twins=twins)
    if verdict.decision == "accepted" and not unchanged:
        now = f"version {serving.version} serves ({serving.by}: {serving.reason})" if serving else "no version serves"
        return _withdrawn(verdict, f"{now}, the candidate was compared with version {spec.incumbent}")
    return verdict


def _other_tensors(registry: CheckpointRegistry, candidate: Path, incumbent: Sequence[Path]) -> list[str]:
    """Return names of tensors that differ in presence, type or shape; an unreadable candidate differs as a whole.

    Raises CorruptCheckpoint when the incumbent cannot be read.
    """
    try:
        expected = tensor_headers(*incumbent)
    except CorruptCheckpoint as error:
        raise CorruptCheckpoint(f"{error}; roll back") from error
    try:
        return differing_tensors(expected, tensor_headers(*registry.with_base(candidate)))
    except (CorruptCheckpoint, FileNotFoundError) as error:
        return [f"{candidate.name} cannot be read ({error})"]


def _weights(folder: RoundFolder, scores: RoundScores, name: str) -> Path:
    return folder.other(name) if name in scores.others else folder.candidate


def _rolled_back_twins(registry: CheckpointRegistry, candidates: Mapping[str, Path]) -> dict[str, int]:
    """Return the version with the same weights that was rolled back, by candidate: another number makes none better.

    A damaged manifest must not stop the judgement of others.
    """
    bad = dict[str, int]()
    for version in sorted(registry.state().rolled_back & set(registry.versions())):
        with suppress(CorruptCheckpoint, UnknownVersion, KeyError):
            bad.setdefault(registry.manifest(version).files[WEIGHTS].sha256, version)
    found = {name: bad.get(digest_of(path)) for name, path in candidates.items() if bad and path.is_file()}
    return {name: version for name, version in found.items() if version is not None}


def _promote(
    registry: CheckpointRegistry, folder: RoundFolder, spec: RoundSpec, scores: RoundScores, verdict: Verdict
) -> Verdict:
    """Add the accepted candidate and let it serve; return the verdict with its version."""
    version = _added(registry, spec) or _add(registry, folder, spec, scores, verdict)
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
        withdrawn = _withdrawn(verdict, str(error))
        into_manifest(registry, folder, withdrawn)
        return withdrawn
    return verdict.model_copy(update={"version": version})


def _add(
    registry: CheckpointRegistry,
    folder: RoundFolder,
    spec: RoundSpec,
    scores: RoundScores,
    verdict: Verdict,
    *,
    judged: bool = True,
) -> int:
    """Add the candidate of a verdict as a version with its parent's architecture, classes and input size.

    Returns its number. It has no verdict while it is in the shadow, so not `judged`.
    """
    name = verdict.candidate or scores.name
    model = scores.candidates().get(name)
    if model is None:
        raise StorageError(f"{folder.path}: accepted without a candidate's scores; the round folder was modified")
    parent = registry.manifest(spec.incumbent)
    seed = spec.settings.get("round", {}).get("advanced", {}).get("seed")
    manifest = Manifest(
        parent=spec.incumbent,
        origin="round",
        round=spec.round,
        created=time.time(),
        network=parent.network,
        network_code=parent.network_code,
        classes=parent.classes,
        input_height=parent.input_height,
        input_width=parent.input_width,
        input_fit=parent.input_fit,
        input_resample=parent.input_resample,
        seed=None if seed is None else int(seed) + spec.round,
        config_hash=settings_hash(spec.settings),
        settings=spec.settings,
        frames=len(spec.train_frames) + len(spec.holdout_frames),
        snapshot=spec.snapshot,
        libraries=library_versions(),
        code=code_digest(),
        scores=_headline_scores(model),
        verdict=verdict.model_dump(mode="json") if judged else None,
    )
    reason = f"candidate of round {spec.round}: {name}"
    return registry.add(_weights(folder, scores, name), manifest, by=GATE, reason=reason).version


def _headline_scores(scores: ModelScores) -> dict[str, float]:
    """Return the main scores: mIoU on source and on restyled source, flip consistency, agreement, those of plug-ins."""
    counts = {"source_miou": scores.source, "styled_source_miou": scores.styled}
    shares = {"flip_consistency": scores.flip_consistency, "agreement": scores.agreement}
    shares |= {f"plugin_{name}": values for name, values in scores.plugins.items()}
    headline = {name: float(labelled_mean_iou(*value.sums())) for name, value in counts.items() if value is not None}
    headline |= {name: float(np.mean(values)) for name, values in shares.items() if values}
    return {name: value for name, value in headline.items() if np.isfinite(value)}


def _added(registry: CheckpointRegistry, spec: RoundSpec) -> int | None:
    """Return the version that this round's candidate became before a crash, or None."""
    for version in reversed(registry.versions()):
        with suppress(CorruptCheckpoint):  # another version's damage must not keep this one from serving
            manifest = registry.manifest(version)
            if manifest.round == spec.round and manifest.parent == spec.incumbent:
                return version
    return None


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


def _withdrawn(verdict: Verdict, why: str) -> Verdict:
    """Return an accepted verdict that can no longer be carried out."""
    reason = f"serving changed during the round: {why}"
    return verdict.model_copy(update={"decision": "inconclusive", "reason": reason})


def _record(registry: CheckpointRegistry, verdict: Verdict, spec: RoundSpec) -> None:
    """Write one line of history for a candidate that the gate did not accept, also when repeated after a kill.

    The line omits its version when an operator has served that meanwhile: the operator's decision wins.
    """
    if any((event.round, event.at) == (spec.round, verdict.at) for event in registry.history()):
        return
    added = _added(registry, spec)
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
