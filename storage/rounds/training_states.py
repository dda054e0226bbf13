"""Training states of a round: folders named by their step, each there whole or not at all.

rounds/000017/state/000400/    teacher, student, Rebuilder, optimizer, counters, random states after 400 steps
"""

from pathlib import Path

from storage import durable


class TrainingStates:
    """The states in one folder; its one writer is the round, and the daemon once the round has ended."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def steps(self) -> list[int]:
        """Steps of the complete states, ascending."""
        return sorted(int(path.name) for path in self.root.glob("[0-9]*") if path.name.isdigit())

    def latest(self) -> Path | None:
        """The newest complete state, or none."""
        steps = self.steps()
        return self._folder(steps[-1]) if steps else None

    def begin(self, step: int) -> Path:
        """An empty folder to write the state of `step` into; what a kill left of an earlier attempt is removed."""
        durable.make_directory(self.root)
        durable.remove_partials(self.root)
        draft = self.draft(step)
        draft.mkdir()
        return draft

    def draft(self, step: int) -> Path:
        """The folder that `begin` makes, for the other processes of the round."""
        return self.root / f".{step:06d}{durable.PARTIAL}"

    def publish(self, step: int) -> Path:
        """Make the state of `step` complete: everything in it is on the disk before its name; older ones go after it.

        Raises DurabilityLost or OSError; then the state before it is still the newest.
        """
        final = self._folder(step)
        durable.publish_directory(self.draft(step), final)
        for older in self.steps():
            if older < step:
                durable.retire_directory(self._folder(older))
        return final

    def remove(self) -> None:
        """Remove every state: nobody can go on from them any more."""
        for step in self.steps():
            durable.retire_directory(self._folder(step))
        self.tidy()

    def tidy(self) -> None:
        """Remove what a kill left half written or half removed."""
        if self.root.is_dir():
            durable.remove_partials(self.root)

    def _folder(self, step: int) -> Path:
        return self.root / f"{step:06d}"
