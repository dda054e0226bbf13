"""Changes that an operator makes to known conditions; they run between two steps of the gate's thread."""

from typing import Literal

from pydantic import Field

from daemon.gate.conditions import merged
from storage.buffer.catalog import Catalog
from storage.durable.record import Record
from storage.errors import ConditionNeeded, InvalidName, UnknownCondition
from storage.gate.conditions import Condition, Conditions, ConditionStore
from storage.layout import StateLayout

LONGEST_NAME = 64
"""Longest name of a condition (characters)."""


class ConditionChange(Record):
    """One change of one condition."""

    kind: Literal["merge", "rename", "forget"]
    """What to do."""
    number: int
    """The condition that is merged into another one, renamed or forgotten."""
    into: int | None = None
    """The condition that stays after a merge."""
    name: str = Field(default="")
    """The new name."""


def apply(known: Conditions | None, change: ConditionChange, newest: int) -> Conditions:
    """Return the conditions after a change; `newest` is the id of the newest frame ever committed.

    Raises UnknownCondition, InvalidName or ConditionNeeded.
    """
    item = found(known, change.number)
    assert known is not None
    if change.kind == "rename":
        return _renamed(known, item, change.name)
    if change.kind == "forget":
        return _forgotten(known, item, newest)
    into = found(known, change.into)
    if into.number == item.number:
        raise ConditionNeeded(f"condition {item.number} cannot be merged into itself; name another one")
    after = merged(known, item.number, into.number)
    cameras = {camera: into.number if at == item.number else at for camera, at in known.cameras.items()}
    return after.model_copy(update={"cameras": cameras})


def write_change(layout: StateLayout, catalog: Catalog, change: ConditionChange) -> Conditions:
    """Change `conditions.json` durably. The caller holds the state directory's lock, and no step of the gate runs.

    The gate's next step releases golden frames that are no longer needed. Raises as `apply`, or StorageError.
    """
    store = ConditionStore(layout.conditions)
    after = apply(store.read(), change, catalog.newest_id())
    store.write(after)
    return after


def found(known: Conditions | None, number: int | None) -> Condition:
    """Return a condition by its number. Raises UnknownCondition."""
    item = known.condition(number) if known else None
    if item is None:
        have = ", ".join(str(one.number) for one in known.conditions) if known else "none is known yet"
        raise UnknownCondition(f"there is no condition {number}; `mfmd conditions list` lists them: {have}")
    return item


def _renamed(known: Conditions, item: Condition, name: str) -> Conditions:
    if not name.strip() or name != name.strip() or len(name) > LONGEST_NAME or not name.isprintable():
        raise InvalidName(
            f"{name!r} cannot be a condition's name: give 1 to {LONGEST_NAME} printable characters, no space at an end"
        )
    taken = next((one for one in known.conditions if one.name == name and one.number != item.number), None)
    if taken is not None or (name.startswith("condition-") and name != f"condition-{item.number}"):
        who = f"condition {taken.number} has it" if taken else "new conditions get names like it"
        raise InvalidName(f"{name!r} cannot be the name of condition {item.number}: {who}; choose another name")
    renamed = item.model_copy(update={"name": name})
    rest = tuple(renamed if one.number == item.number else one for one in known.conditions)
    return known.model_copy(update={"conditions": rest})


def _forgotten(known: Conditions, item: Condition, newest: int) -> Conditions:
    """Frames that are committed already do not open it again: only a burst of later ones does."""
    if item.labelled or len(known.conditions) == 1:
        why = "the labelled source belongs to it" if item.labelled else "it is the only one"
        raise ConditionNeeded(f"condition {item.number} ({item.name}) cannot be forgotten: {why}")
    update = {
        "conditions": tuple(one for one in known.conditions if one.number != item.number),
        "opens_after": max(known.opens_after, newest),
        "cameras": {camera: None if at == item.number else at for camera, at in known.cameras.items()},
    }
    if known.current == item.number:
        update |= {"current": None, "burst": ()}
    return known.model_copy(update=update)
