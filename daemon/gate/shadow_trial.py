"""A candidate's time in the shadow: what an accepted candidate goes through before it serves (`gate.shadow_images`).

Everything is in files, so a kill at any moment leaves a trial that the next daemon goes on with: `shadow.json` of the
round from the beginning, `verdict.json` at the end, and the ref is removed after that was acted upon: a candidate that
leaves the shadow before it serves would have to be read again.
"""

import time

from configs.settings import Settings
from daemon.gate.decide import GATE
from daemon.gate.shadow_rule import ShadowSight, decide_shadow
from storage.errors import CorruptCheckpoint, StorageError, UnknownVersion
from storage.registry.registry import CheckpointRegistry
from storage.registry.shadow_record import ShadowRecords
from storage.rounds.folder import RoundFolder, RoundStore
from storage.rounds.records import Progress, ShadowTrial, Verdict


def asks_for_shadow(settings: Settings) -> bool:
    """Whether accepted candidates run in the shadow before they serve."""
    return settings.gate.shadow_images > 0 and settings.serving.shadow_fraction > 0


def begin_trial(folder: RoundFolder, settings: Settings, version: int, verdict: Verdict) -> None:
    """Write down that `version`, accepted on its scores by `verdict`, is to run in the shadow."""
    gate = settings.gate
    folder.write_trial(
        ShadowTrial(
            version=version,
            verdict=verdict,
            images=gate.shadow_images,
            seconds=gate.shadow_seconds,
            agreement=gate.shadow_agreement,
            failures=gate.shadow_failures,
            began=time.time(),
        )
    )


def look(
    registry: CheckpointRegistry, folder: RoundFolder, records: ShadowRecords, *, waited: float, stopped: bool
) -> Verdict | None:
    """The verdict on a candidate in the shadow, or none as long as it is to be waited for.

    Puts it there when the place is free. `waited`: seconds since `ShadowTrial.waited` was written; `stopped`: an
    operator ends the wait. Raises StorageError when that is impossible now.
    """
    trial, incumbent = _trial(folder), folder.spec().incumbent
    serving = registry.serving()
    obstacle = "" if trial.placed or serving is None or serving.version != incumbent else _place(registry, folder)
    shadow = registry.ref("shadow")
    sight = ShadowSight(
        incumbent=incumbent,
        serving=serving.version if serving else None,
        shadow=shadow.version if shadow else None,
        record=records.total(trial.version, incumbent),
        waited=trial.waited + waited,
        stopped=stopped,
        obstacle=obstacle,
    )
    return decide_shadow(_trial(folder), sight, at=time.time())


def progress_of(folder: RoundFolder, records: ShadowRecords) -> Progress:
    """How far a candidate in the shadow is."""
    trial = _trial(folder)
    record = records.total(trial.version, folder.spec().incumbent)
    images, agreement = (record.images, record.agreement) if record and record.images else (0, None)
    return Progress(at=time.time(), phase="shadow", step=images, steps=trial.images, agreement=agreement)


def note_wait(folder: RoundFolder, seconds: float) -> None:
    """Write down that a daemon waited `seconds` more: the limit holds over restarts."""
    trial = _trial(folder)
    folder.write_trial(trial.model_copy(update={"waited": trial.waited + seconds}))


def is_open(folder: RoundFolder) -> bool:
    """Whether a round's candidate is in the shadow, or about to be. False for one whose records are damaged."""
    try:
        return folder.trial() is not None and folder.verdict() is None
    except StorageError:
        return False


def open_trial(store: RoundStore) -> int | None:
    """The newest round whose candidate is in the shadow, or about to be."""
    return next((number for number in reversed(store.numbers()) if is_open(store.folder(number))), None)


def end_shadow(registry: CheckpointRegistry, reason: str) -> None:
    """Take the gate's candidate out of the shadow; an operator's stays."""
    shadow = registry.ref("shadow")
    if shadow is not None and shadow.by == GATE:
        registry.set_shadow(None, by=GATE, reason=reason, over=GATE)


def _place(registry: CheckpointRegistry, folder: RoundFolder) -> str:
    """Put the candidate into the shadow unless an operator's is there; returns why that can never be, or nothing."""
    trial = _trial(folder)
    reason = f"round {folder.number}: {trial.verdict.reason}; {trial.images} live images to be compared"
    try:
        if registry.set_shadow(trial.version, by=GATE, reason=reason, over=GATE):
            folder.write_trial(trial.model_copy(update={"placed": True}))
    except (UnknownVersion, CorruptCheckpoint) as error:
        return str(error)
    return ""


def _trial(folder: RoundFolder) -> ShadowTrial:
    trial = folder.trial()
    if trial is None:
        raise StorageError(f"{folder.path / 'shadow.json'}: missing; the round folder was tampered with")
    return trial
