"""First steps of a daemon: end leftover processes, release leases, finish rounds that the last daemon left.

One round is resumed instead if a kill, a stop or the machine interrupted it: from its last training state.
"""

from pathlib import Path

from pydantic import ValidationError
from structlog.contextvars import bound_contextvars

from configs.settings import Settings
from daemon.gate.promotion import advance_round
from daemon.gate.shadow import end_shadow, open_trial
from daemon.rounds.inheritance import promoted_round
from daemon.rounds.runner import GRACE_SECONDS, STOPPED, record_failure
from daemon.runtime.logs import get_logger
from daemon.runtime.process_group import end_leftovers
from storage.buffer.frames import FrameBuffer
from storage.errors import DurabilityLost, StorageError
from storage.layout import StateLayout
from storage.registry.registry import CheckpointRegistry
from storage.rounds.folder import RoundFolder, RoundStore
from storage.rounds.verdict import AT_WORK, ENDED

INTERRUPTED = "the daemon ended while the round ran"
TRIES = 3
"""After this many crashes from the same training state a round is not restarted."""

log = get_logger(__name__)


def recover(settings: Settings, buffer: FrameBuffer, registry: CheckpointRegistry) -> int | None:
    """Make the state directory consistent; call it under the lock, before anything else works on it.

    Returns the number of the round to resume (`runner.continue_round`), or None. A round that resumes training keeps
    its frames from ingest; one that is `shadowing` needs none. Every other round is finished: without scores it failed,
    with scores it is judged now. Training states that no round can resume from are removed.
    """
    layout = StateLayout(settings.state)
    end_leftovers(layout, GRACE_SECONDS)
    store = RoundStore(layout.rounds)
    latest = store.latest()
    going_on = latest.number if latest is not None and not _obstacle(latest, buffer, registry) else None
    if going_on is not None and going_on not in buffer.leases():
        buffer.lease(going_on)
    for number in buffer.leases():
        if number != going_on:
            log.warning("lease_released", round=number)
            buffer.release(number)
    for number in store.numbers():
        if number != going_on:
            folder = store.folder(number)
            try:
                why = f"{INTERRUPTED}; {_obstacle(folder, buffer, registry)}"
                if damage := finish_round(folder, registry, settings, why):
                    log.error("round_damaged", round=number, damage=damage)
            except (StorageError, OSError) as error:  # must not keep the daemon from starting
                log.error("round_not_finished", round=number, error=str(error))
    going_on = going_on or open_trial(store)
    if going_on is None:
        try:
            end_shadow(registry, "no round waits for it")
            store.remove_states(spare=promoted_round(registry))
        except DurabilityLost:
            raise
        except StorageError as error:  # a damaged ref; rounds wait until it is mended, and the next one cleans up
            log.error("states_not_removed", error=str(error))
    else:
        log.warning("round_interrupted", round=going_on)
    return going_on


def finish_round(folder: RoundFolder, registry: CheckpointRegistry, settings: Settings, why: str = INTERRUPTED) -> str:
    """Finish a round whose process no longer runs, or advance it to `shadowing`; return what is wrong with its records.

    Nothing happens when it has ended. One without scores failed, for the reason `why`, unless an operator had stopped
    it. A folder with damaged records does not change: it counts as failed, and nothing in it can be trusted. Raises
    StorageError or OSError when the round cannot be judged now; the candidate waits.
    """
    try:
        if folder.record().stage == "suggested":  # it waits for a person: `settle_suggestions`
            return ""
        record, _, _, scores = folder.record(), folder.spec(), folder.verdict(), folder.scores()
    except StorageError as error:
        return str(error)
    if record.stage in ENDED:
        return ""
    if record.stage in AT_WORK and scores is None:
        record_failure(folder, *(("stopped", STOPPED) if record.stopped else ("failed", why)))
    with bound_contextvars(round=folder.number):  # the gate's lines name it
        stage = advance_round(registry, folder, settings)
    log.warning("round_finished_late", round=folder.number, stage=stage, reason=folder.record().reason)
    return ""


def _obstacle(folder: RoundFolder, buffer: FrameBuffer, registry: CheckpointRegistry) -> str:
    """Return why a round cannot be resumed; empty when it can."""
    try:
        record, scores, spec = folder.record(), folder.scores(), folder.spec()
        if record.stage not in AT_WORK or (scores is not None and scores.status != "stopped"):
            return "it has ended"
        settings = Settings.model_validate(spec.settings)
    except StorageError as error:
        return str(error)
    except ValidationError as error:
        return f"its settings are no longer valid: {error.errors()[0]['msg']}"
    if record.stopped:
        return "an operator ended it"
    step = folder.saved_step
    if not step:
        return "it had saved no training state"
    if record.crashes()[-TRIES:] == [step] * TRIES:
        return f"{TRIES} starts from step {step} made no progress"
    serving = registry.readable_refs()[0].get("serving")
    if (serving.version if serving else registry.state().serves_last) != spec.incumbent:
        return f"version {spec.incumbent} no longer serves"
    if serving is not None and serving.since > spec.created:
        return f"version {spec.incumbent} was promoted again after the round began"
    if Path(settings.state).resolve() != folder.path.resolve().parents[1]:
        return f"it was started for the state directory {settings.state}"
    frames = {*spec.train_frames, *spec.holdout_frames}
    missing = len(frames) - len(buffer.records(ids=frames))
    return f"{missing} of its frames were evicted from the buffer" if missing else ""
