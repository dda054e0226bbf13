"""Training states of a round: folders named by their step, each complete or absent.

rounds/000017/state/000400/    teacher, student, Rebuilder, optimizer, counters, random states after 400 steps
"""

from pathlib import Path

from storage import durable
from storage.registry.files import numbers


class TrainingStates:
    """The states in one folder; its one writer is the round, and the daemon after the round has ended."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def steps(self) -> list[int]:
        """Return the steps of the complete states, ascending."""
        return numbers(self.root)

    def latest(self) -> Path | None:
        """Return the newest complete state, or None."""
        steps = self.steps()
        return self._folder(steps[-1]) if steps else None

    def begin(self, step: int) -> Path:
        """Create an empty folder for the state of `step`; leftovers of an earlier attempt are removed."""
        durable.make_directory(self.root)
        durable.remove_partials(self.root)
        draft = self.draft(step)
        draft.mkdir()
        return draft

    def draft(self, step: int) -> Path:
        """Return the folder that `begin` creates, for the other processes of the round."""
        return self.root / f".{step:06d}{durable.PARTIAL}"

    def publish(self, step: int) -> Path:
        """Make the state of `step` complete: all content is on the disk before its name; older ones are removed after.

        Raises DurabilityLost or OSError; then the state before it is still the newest.
        """
        final = self._folder(step)
        durable.publish_directory(self.draft(step), final)
        for older in self.steps():
            if older < step:
                durable.retire_directory(self._folder(older))
        return final

    def remove(self) -> None:
        """Remove every state: no round can continue from them any more."""
        for step in self.steps():
            durable.retire_directory(self._folder(step))
        self.tidy()

    def tidy(self) -> None:
        """Remove half-written or half-removed leftovers of kills."""
        if self.root.is_dir():
            durable.remove_partials(self.root)

    def _folder(self, step: int) -> Path:
        return self.root / f"{step:06d}"
