"""A candidate's time in the shadow, between the verdict on its scores and serving (`gate.shadow_images`).

The rule is pure, over records (docs/explanation/gate.md): the shadow shows damage that hold-out frames did not.
`round.json` holds the trial, so the next daemon continues it after a kill.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from configs.settings import Settings
from daemon.gate.decide import GATE, Decision
from daemon.gate.vetoes import veto
from storage.errors import CorruptCheckpoint, StorageError, UnknownVersion
from storage.registry.registry import CheckpointRegistry
from storage.registry.shadow_record import ShadowRecord, ShadowRecords
from storage.rounds.folder import RoundFolder, RoundStore
from storage.rounds.records import Progress
from storage.rounds.verdict import Check, ShadowTrial, Verdict


@dataclass(frozen=True, slots=True)
class ShadowObservation:
    """Facts about a candidate's time in the shadow at one moment."""

    incumbent: int
    """The version that the candidate was compared with when it was scored."""
    serving: int | None
    shadow: int | None
    """The version in the shadow, whoever named it."""
    record: ShadowRecord | None
    """The record of the candidate beside the incumbent, summed over planes."""
    waited: float
    """Seconds waited so far."""
    stopped: bool = False
    """Whether an operator ends the wait permanently."""
    obstacle: str = ""
    """Why the candidate cannot run in the shadow at all; empty when it can."""


def decide_shadow(trial: ShadowTrial, seen: ShadowObservation, *, at: float) -> Verdict | None:
    """Return the verdict on a candidate with accepted scores; None: continue to wait.

    accepted: enough images, enough agreement. rejected: enough images, too little agreement, or errors on more images
    than allowed, even among few. inconclusive: too few images in time, or the records concern another incumbent, or
    somebody ended it. `at` is the verdict's time (Unix, seconds).
    """
    checks = _checks(trial, seen.record)
    end = _end(trial, seen, checks)
    if end is None:
        return None
    update = {"decision": end[0], "reason": end[1], "checks": [*trial.verdict.checks, *checks], "at": at}
    return trial.verdict.model_copy(update=update)


def _end(trial: ShadowTrial, seen: ShadowObservation, checks: Sequence[Check]) -> tuple[Decision, str] | None:
    """Return decision and reason: first what invalidates all evidence, then the evidence, then what ends the wait.

    A manual unshadow wins, even if the last image has just been compared.
    """
    compared = checks[0].detail
    if seen.serving != seen.incumbent:
        now = f"version {seen.serving} serves" if seen.serving is not None else "no version serves"
        began = f"the shadow began beside version {seen.incumbent}"
        return "inconclusive", f"serving changed during the shadow: {now}, {began}"
    if seen.obstacle:
        return "inconclusive", f"it cannot run in the shadow: {seen.obstacle}"
    if trial.placed and seen.shadow != trial.version:
        return "inconclusive", f"an operator ended its shadow: {compared}"
    for check in checks[1:]:
        if not check.passed:
            return "rejected", f"veto: {check.detail}"
    if checks[0].passed:
        return "accepted", f"{trial.verdict.reason}; {checks[-1].detail}"
    if seen.stopped:
        return "inconclusive", f"stopped in the shadow: {compared}"
    if seen.waited < trial.seconds:
        return None
    if not trial.placed and seen.shadow not in (None, trial.version):
        instead = f"version {seen.shadow} was in the shadow instead"
        compared += f"; {instead}; `mfmd checkpoints unshadow` ends that"
    return "inconclusive", f"too few images in {trial.seconds:.0f} s of shadow: {compared}"


def _checks(trial: ShadowTrial, record: ShadowRecord | None) -> list[Check]:
    """Return the checks: the evidence first, then the vetoes on what there is of it.

    Agreement needs enough images. Errors count among as many as there are, at least as many as are wanted: later images
    cannot compensate.
    """
    images, wanted = record.images if record else 0, trial.images
    detail = _compared(trial, record)
    checks = [
        Check(name="shadow_images", kind="evidence", passed=images >= wanted, value=images, limit=wanted, detail=detail)
    ]
    if record is None:
        return checks
    among, share = max(wanted, record.tried), record.failed / record.tried if record.tried else 0.0
    errors = f"raised an error on {record.failed} of {record.tried} live images"
    detail = f"in the shadow the candidate {errors}, at most {trial.failures:.1%} of {among} may"
    checks.append(veto("shadow_failed", record.failed / among <= trial.failures, detail, share, trial.failures))
    if images >= wanted:
        served = f"in the shadow {record.agreement:.1%} of the pixels of {images} live images as served"
        detail, least = f"{served}, {trial.agreement:.1%} needed", trial.agreement
        checks.append(veto("shadow_agreement", record.agreement >= least, detail, record.agreement, least))
    return checks


def _compared(trial: ShadowTrial, record: ShadowRecord | None) -> str:
    compared = f"{record.images if record else 0} of {trial.images} live images compared"
    if record is not None and record.images:
        compared += f", {record.agreement:.1%} of their pixels as served"
    if record is not None and record.failed:
        compared += f", an error on {record.failed} more"
    return compared


def new_trial(settings: Settings, version: int, verdict: Verdict) -> ShadowTrial:
    """Return the trial of `version`, which `verdict` accepted on its scores."""
    gate = settings.gate
    return ShadowTrial(
        version=version,
        verdict=verdict,
        images=gate.shadow_images,
        seconds=gate.advanced.shadow_seconds,
        agreement=gate.advanced.shadow_agreement,
        failures=gate.advanced.shadow_failures,
    )


def poll_shadow(
    registry: CheckpointRegistry, folder: RoundFolder, records: ShadowRecords, *, waited: float, stopped: bool
) -> Verdict | None:
    """Return the verdict on a candidate in the shadow; None as long as it has to wait.

    Puts the candidate into the shadow when no other runs there. `waited`: seconds since `ShadowTrial.waited` was
    written; `stopped`: an operator ends the wait. Raises StorageError when that is impossible now.
    """
    trial, incumbent = _trial(folder), folder.spec().incumbent
    serving = registry.serving()
    obstacle = "" if trial.placed or serving is None or serving.version != incumbent else _place(registry, folder)
    shadow = registry.ref("shadow")
    seen = ShadowObservation(
        incumbent=incumbent,
        serving=serving.version if serving else None,
        shadow=shadow.version if shadow else None,
        record=records.total(trial.version, incumbent),
        waited=trial.waited + waited,
        stopped=stopped,
        obstacle=obstacle,
    )
    return decide_shadow(_trial(folder), seen, at=time.time())


def progress_of(folder: RoundFolder, records: ShadowRecords) -> Progress:
    """Return the progress of a candidate in the shadow."""
    trial = _trial(folder)
    record = records.total(trial.version, folder.spec().incumbent)
    images, agreement = (record.images, record.agreement) if record and record.images else (0, None)
    return Progress(at=time.time(), phase="shadow", step=images, steps=trial.images, agreement=agreement)


def note_wait(folder: RoundFolder, seconds: float) -> None:
    """Record that a daemon waited `seconds` more: the limit applies over restarts."""
    trial = _trial(folder)
    folder.change(trial=trial.model_copy(update={"waited": trial.waited + seconds}))


def open_trial(store: RoundStore) -> int | None:
    """Return the newest round in stage `shadowing`. A round with a damaged record does not count."""
    return next((folder.number for folder in store.at("shadowing")), None)


def end_shadow(registry: CheckpointRegistry, reason: str) -> None:
    """Remove the gate's candidate from the shadow; an operator's stays."""
    shadow = registry.ref("shadow")
    if shadow is not None and shadow.by == GATE:
        registry.set_shadow(None, by=GATE, reason=reason, over=GATE)


def _place(registry: CheckpointRegistry, folder: RoundFolder) -> str:
    """Put the candidate into the shadow unless an operator's runs there; return a permanent obstacle, or nothing."""
    trial = _trial(folder)
    reason = f"round {folder.number}: {trial.verdict.reason}; {trial.images} live images to be compared"
    try:
        if registry.set_shadow(trial.version, by=GATE, reason=reason, over=GATE):
            folder.change(trial=trial.model_copy(update={"placed": True}))
    except (UnknownVersion, CorruptCheckpoint) as error:
        return str(error)
    return ""


def _trial(folder: RoundFolder) -> ShadowTrial:
    trial = folder.record().trial
    if trial is None:
        raise StorageError(f"{folder.path / 'round.json'}: has no trial; the round folder was modified")
    return trial
