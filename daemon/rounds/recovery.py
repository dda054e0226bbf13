"""First steps of a daemon: end leftover processes, release leases, finish unfinished rounds.

One unfinished round is resumed instead: `daemon.rounds.resume`.
"""

from configs.settings import Settings
from daemon.gate.promotion import advance_round
from daemon.gate.shadow import end_shadow, open_trial
from daemon.rounds.inheritance import promoted_round
from daemon.rounds.resume import interrupted_round, obstacle
from daemon.rounds.runner import GRACE_SECONDS, STOPPED, record_failure
from daemon.runtime.logs import get_logger
from daemon.runtime.process_group import end_leftovers
from storage.buffer.frames import FrameBuffer
from storage.errors import StorageError
from storage.layout import StateLayout
from storage.registry.registry import CheckpointRegistry
from storage.rounds.folder import RoundFolder, RoundStore
from storage.rounds.records import AT_WORK, ENDED

INTERRUPTED = "the daemon ended while the round ran"

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
    going_on = interrupted_round(store, buffer, registry)
    for number in buffer.leases():
        if number != going_on:
            log.warning("lease_released", round=number)
            buffer.release(number)
    for number in store.numbers():
        if number != going_on:
            _finish(store.folder(number), buffer, registry, settings)
    going_on = going_on or open_trial(store)
    if going_on is None:
        end_shadow(registry, "no round waits for it")
        store.remove_states(spare=promoted_round(registry))
    else:
        log.warning("round_interrupted", round=going_on)
    return going_on


def _finish(folder: RoundFolder, buffer: FrameBuffer, registry: CheckpointRegistry, settings: Settings) -> None:
    damage = damage_of(folder)
    if damage:
        log.error("round_damaged", round=folder.number, damage=damage)
        return
    try:
        finish_round(folder, registry, settings, f"{INTERRUPTED}; {obstacle(folder, buffer, registry)}")
    except (StorageError, OSError) as error:  # must not keep the daemon from starting
        log.error("round_not_finished", round=folder.number, error=str(error))


def finish_round(folder: RoundFolder, registry: CheckpointRegistry, settings: Settings, why: str = INTERRUPTED) -> None:
    """Finish a round whose process no longer runs, or advance it to `shadowing`.

    Nothing happens when it has ended. One without scores failed, for the reason `why`, unless an operator had stopped
    it. A folder with damaged records does not change: it counts as failed, and nothing in it can be trusted. Raises
    StorageError or OSError when the round cannot be judged now; the candidate waits.
    """
    try:
        record = folder.record()
    except StorageError:
        return
    if record.stage in ENDED or damage_of(folder):
        return
    if record.stage in AT_WORK and folder.scores() is None:
        record_failure(folder, *(("stopped", STOPPED) if record.stopped else ("failed", why)))
    stage = advance_round(registry, folder, settings)
    log.warning("round_finished_late", round=folder.number, stage=stage, reason=folder.record().reason)


def damage_of(folder: RoundFolder) -> str:
    """Return what is wrong with the records of a round; empty when they can be read."""
    try:
        folder.record(), folder.spec(), folder.scores(), folder.verdict()
    except StorageError as error:
        return str(error)
    return ""
