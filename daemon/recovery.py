"""What a daemon does first: end what a kill left running, give leases back, bring unfinished rounds to an end."""

from configs.settings import Settings
from daemon.child_records import end_leftovers
from daemon.logs import get_logger
from daemon.promotion import judge
from daemon.rounds import GRACE_SECONDS, record_failure
from storage.errors import StorageError
from storage.frames import FrameBuffer
from storage.layout import StateLayout
from storage.registry import CheckpointRegistry
from storage.rounds import RoundFolder, RoundStore

INTERRUPTED = "the daemon ended while the round ran"

log = get_logger(__name__)


def recover(settings: Settings, buffer: FrameBuffer, registry: CheckpointRegistry) -> None:
    """Make the state directory consistent; call it under the lock, before anything else works on it.

    A round that wrote no scores failed. One that did and was not judged is judged now: its candidate is complete.
    """
    layout = StateLayout(settings.state)
    end_leftovers(layout.run_file("children"), GRACE_SECONDS)
    for number in buffer.leases():
        log.warning("lease_released", round=number)
        buffer.release(number)
    store = RoundStore(layout.rounds)
    for number in store.numbers():
        damage = damage_of(store.folder(number))
        if damage:
            log.error("round_damaged", round=number, damage=damage)
        try:
            finish_round(store.folder(number), registry, settings)
        except (StorageError, OSError) as error:  # must not keep the daemon from starting
            log.error("round_not_finished", round=number, error=str(error))


def finish_round(folder: RoundFolder, registry: CheckpointRegistry, settings: Settings) -> None:
    """Bring a round that does not run any more to its verdict; nothing happens when it has one and it was acted on.

    A folder with damaged records is left as it is: it shows as failed, and nothing in it can be trusted.
    Raises StorageError or OSError when judging is impossible now; the candidate waits.
    """
    if damage_of(folder):
        return
    verdict = folder.verdict()
    if verdict is not None and (verdict.decision != "accepted" or verdict.version is not None):
        return
    if folder.scores() is None:
        record_failure(folder, "failed", INTERRUPTED)
    verdict = judge(registry, folder, settings)
    log.warning("round_finished_late", round=folder.number, decision=verdict.decision, reason=verdict.reason)


def damage_of(folder: RoundFolder) -> str:
    """What is wrong with the records of a round; empty when they can be read."""
    try:
        folder.spec(), folder.scores(), folder.verdict()
    except StorageError as error:
        return str(error)
    return ""
