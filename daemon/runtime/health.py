"""Is the daemon alive, and does it do its work? Two different questions: a full disk is no reason to restart it."""

import time
from collections.abc import Callable, Sequence

from daemon.runtime.activity import ChildActivity
from daemon.runtime.worker import Worker
from storage.errors import StorageError
from storage.registry.registry import CheckpointRegistry


class Health:
    """Answers for `/healthz` and `/readyz`."""

    def __init__(
        self,
        workers: Sequence[Worker],
        registry: CheckpointRegistry,
        children: Callable[[], Sequence[ChildActivity]] = list,
    ) -> None:
        """`children`: what the supervised ones do."""
        self._workers, self._registry = workers, registry
        self._children = children

    def dead(self) -> list[str]:
        """Parts whose thread ended by a bug or is stuck; empty when all live. A part that stopped on purpose lives."""
        now = time.monotonic()
        return [
            f"{part.name}: no step ended for {now - part.last_tick:.0f} s"
            for part in self._workers
            if not part.failed and (not part.alive or part.stuck)
        ]

    def not_ready(self) -> list[str]:
        """Why the daemon does not do its work; empty when it does."""
        problems = [f"{part.name} stopped: {part.last_error}" for part in self._workers if part.failed]
        problems += [f"`mfmd {child.name}` {child.problem}" for child in self._children() if child.problem]
        try:
            if self._registry.serving() is None:
                problems.append("no version serves")
        except (StorageError, OSError) as error:
            problems.append(str(error))
        return [*self.dead(), *problems]
