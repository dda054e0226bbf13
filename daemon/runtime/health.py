"""Is the daemon alive, and does it do its work? Two different questions: a full disk is no reason to restart it."""

import time
from collections.abc import Callable, Sequence

from daemon.runtime.activity import ChildActivity
from daemon.runtime.worker import Component
from storage.errors import StorageError
from storage.registry.registry import CheckpointRegistry

STUCK_SECONDS = 120.0
"""A part that did not end a step for so long is stuck (seconds); a commit on a slow disk is not."""


class Health:
    """Answers for `/healthz` and `/readyz`."""

    def __init__(
        self,
        components: Sequence[Component],
        may_take_long: str,
        registry: CheckpointRegistry,
        children: Callable[[], Sequence[ChildActivity]] = list,
    ) -> None:
        """`may_take_long` names the component whose steps last as long as a round; `children`: the supervised ones."""
        self._components, self._patient, self._registry = components, may_take_long, registry
        self._children = children

    def dead(self) -> list[str]:
        """Parts whose thread ended by a bug or is stuck; empty when all live. A part that stopped on purpose lives."""
        now = time.monotonic()
        return [
            f"{part.name}: no step ended for {now - part.last_tick:.0f} s"
            for part in self._components
            if not part.failed
            and (not part.alive or (part.name != self._patient and now - part.last_tick > STUCK_SECONDS))
        ]

    def not_ready(self) -> list[str]:
        """Why the daemon does not do its work; empty when it does."""
        problems = [f"{part.name} stopped: {part.trouble}" for part in self._components if part.failed]
        problems += [f"`mfmd {child.name}` {child.problem}" for child in self._children() if child.problem]
        try:
            if self._registry.serving() is None:
                problems.append("no version serves")
        except (StorageError, OSError) as error:
            problems.append(str(error))
        return [*self.dead(), *problems]
