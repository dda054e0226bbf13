"""What a daemon does first: end what a kill left running, give leases back, bring unfinished rounds to an end.

One unfinished round is not ended but gone on with: `daemon.rounds.resume`.
"""

from configs.settings import Settings
from daemon.gate.promotion import judge
from daemon.gate.shadow_trial import end_shadow, open_trial
from daemon.rounds.inheritance import promoted_round
from daemon.rounds.resume import ended_by_operator, interrupted_round, obstacle
from daemon.rounds.runner import GRACE_SECONDS, STOPPED, record_failure
from daemon.runtime.logs import get_logger
from daemon.runtime.process_group import end_leftovers
from storage.buffer.frames import FrameBuffer
from storage.errors import StorageError
from storage.layout import StateLayout
from storage.registry.registry import CheckpointRegistry
from storage.rounds.folder import RoundFolder, RoundStore

INTERRUPTED = "the daemon ended while the round ran"

log = get_logger(__name__)


def recover(settings: Settings, buffer: FrameBuffer, registry: CheckpointRegistry) -> int | None:
    """Make the state directory consistent; call it under the lock, before anything else works on it.

    Returns the number of the round that goes on (`rounds.continue_round`), or none: it keeps its frames from ingest.
    Any other round that wrote no scores failed. One that did and was not judged is judged now: its candidate is
    complete. If that is to run in the shadow first, or does already, the round goes on too, but needs no frames.
    Training states that nobody can go on from are removed.
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
    """Bring a round that does not run any more to its verdict; nothing happens when it has one and it was acted on.

    One without scores failed, for the reason `why`, unless an operator had ended it. A candidate that is to run in the
    shadow is put there, and its round stays open (`shadow_trial.open_trial`).

    A folder with damaged records is left as it is: it shows as failed, and nothing in it can be trusted.
    Raises StorageError or OSError when judging is impossible now; the candidate waits.
    """
    if damage_of(folder):
        return
    verdict = folder.verdict()
    if verdict is not None and (verdict.decision != "accepted" or verdict.version is not None):
        return
    if folder.scores() is None and ended_by_operator(folder):
        record_failure(folder, "stopped", STOPPED)
    elif folder.scores() is None:
        record_failure(folder, "failed", why)
    verdict = judge(registry, folder, settings)
    if verdict is not None:
        log.warning("round_finished_late", round=folder.number, decision=verdict.decision, reason=verdict.reason)


def damage_of(folder: RoundFolder) -> str:
    """What is wrong with the records of a round; empty when they can be read."""
    try:
        folder.spec(), folder.scores(), folder.trial(), folder.verdict()
    except StorageError as error:
        return str(error)
    return ""
