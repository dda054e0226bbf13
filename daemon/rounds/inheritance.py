"""Choose the training state that a new round inherits: that of the round that made the serving version.

Rejected rounds in between do not break this line, until there are too many: then one round starts again from the
released weights. A rollback breaks it: a version that was rolled back must not survive in teacher, moments or
Rebuilder. Everything follows from the round folders, so a kill changes nothing.
"""

from operator import attrgetter

from pydantic import ValidationError

from configs.settings import Settings
from daemon.rounds.history import rejected_in_a_row, summarise
from storage.errors import StorageError
from storage.registry.registry import CheckpointRegistry
from storage.rounds.folder import RoundStore

STATE_SHAPE = (
    "recipe.name", "mfm.enabled", "mfm.ablation.grid", "mfm.ablation.dim", "mfm.ablation.blocks",
    "mfm.ablation.heads", "mfm.ablation.reconstruction", "round.crop_height", "round.crop_width", "buffer.height",
    "buffer.width",
)  # fmt: skip
"""Settings that decide which tensors a training state has; others may change from round to round."""


def promoted_round(registry: CheckpointRegistry) -> int | None:
    """Return the round whose promotion was the last move of the serving ref; otherwise None."""
    serving, move = registry.serving(), registry.state().last_move
    if serving is None or move is None or move.event != "promoted" or move.version != serving.version:
        return None
    return move.round


def inherited_round(settings: Settings, registry: CheckpointRegistry, store: RoundStore) -> tuple[int | None, str]:
    """Return the round whose training state the next one inherits, or None; and why."""
    if not settings.round.advanced.inherit:
        return None, "round.advanced.inherit is off"
    number = promoted_round(registry)
    if number is None:
        return None, "the serving version was not promoted by a round"
    try:
        folder = store.folder(number)
        before = Settings.model_validate(folder.spec().settings)
    except StorageError as error:
        return None, f"round {number} cannot be read: {error}"
    except ValidationError:
        return None, f"round {number} has settings of another version of mfmd"
    if folder.states.latest() is None:
        return None, f"round {number} has no training state"
    changed = [name for name in STATE_SHAPE if attrgetter(name)(before) != attrgetter(name)(settings)]
    if changed:
        return None, f"changed since round {number}: {', '.join(changed)}"
    return number, f"round {number} made the serving version"


def restarts(settings: Settings, store: RoundStore, incumbent: int, released: int, condition: int | None) -> bool:
    """Return whether the next round starts from the released weights: too many before it were rejected."""
    most = settings.round.advanced.restart_after_rejections
    if not most or incumbent == released:
        return False
    rounds = (summarise(store.folder(number)) for number in reversed(store.numbers()))
    return rejected_in_a_row(rounds, incumbent, condition) >= most
