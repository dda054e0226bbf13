"""Liveness and readiness of the daemon. They differ: a full disk is no reason to restart it."""

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
        """Set up; `children` returns the activity of the supervised children."""
        self._workers, self._registry = workers, registry
        self._children = children

    def dead(self) -> list[str]:
        """Return parts whose thread crashed or is stuck; empty if all live. A part stopped on purpose is live."""
        now = time.monotonic()
        return [
            f"{part.name}: no step finished for {now - part.last_tick:.0f} s"
            for part in self._workers
            if not part.failed and (not part.alive or part.stuck)
        ]

    def not_ready(self) -> list[str]:
        """Return why the daemon is not ready; empty if it is."""
        problems = [f"{part.name} stopped: {part.last_error}" for part in self._workers if part.failed]
        problems += [f"`mfmd {child.name}` {child.problem}" for child in self._children() if child.problem]
        try:
            if self._registry.serving() is None:
                problems.append("no version serves")
        except (StorageError, OSError) as error:
            problems.append(str(error))
        return [*self.dead(), *problems]
