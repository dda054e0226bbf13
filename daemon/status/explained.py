"""Read what the state directory knows about a round or a version, and explain it. Read-only, works beside a daemon."""

from contextlib import suppress

from daemon.gate.explanation import Explanation, RoundFacts, VersionFacts, explain_round, explain_version
from daemon.gate.suggestion import waiting_version
from storage.durable.record import read_record
from storage.errors import CorruptCheckpoint, StorageError, UnknownVersion
from storage.gate.conditions import ConditionStore
from storage.gate.probation import Probation
from storage.layout import StateLayout
from storage.registry.registry import CheckpointRegistry
from storage.rounds.folder import RoundStore


def explained_round(layout: StateLayout, number: int) -> Explanation:
    """Explain round `number`. Raises UnknownRound, or StorageError when its records are damaged."""
    folder = RoundStore(layout.rounds).folder(number)
    history = CheckpointRegistry(layout.checkpoints).history()
    return explain_round(
        RoundFacts(
            number, folder.record(), folder.spec(), folder.scores(), folder.verdict(), history, _probation(layout)
        )
    )


def explained_version(layout: StateLayout, number: int) -> Explanation:
    """Explain version `number`, also one that was removed. Raises UnknownVersion when it never was."""
    registry = CheckpointRegistry(layout.checkpoints)
    history, manifest, damage = registry.history(), None, ""
    try:
        manifest = registry.manifest(number)
    except CorruptCheckpoint as error:
        damage = str(error)
    except UnknownVersion:
        if all(event.version != number for event in history):
            raise
    serving = waits = conditions = None
    with suppress(StorageError):  # `mfmd check` reports damage of these; the rest is explained all the same
        serving = registry.serving()
    with suppress(StorageError):
        waits = waiting_version(RoundStore(layout.rounds))
    with suppress(StorageError):
        conditions = ConditionStore(layout.conditions).read()
    return explain_version(
        VersionFacts(
            number, manifest, damage, serving.version if serving else None, waits == number, history,
            _probation(layout), conditions,
        )
    )  # fmt: skip


def _probation(layout: StateLayout) -> Probation | None:
    with suppress(StorageError):
        return read_record(layout.probation, Probation)
    return None
