"""An eviction policy of another package, of which mfmd believes only the order."""

import logging
from collections.abc import Collection, Iterator, Sequence
from typing import Any

from configs.errors import ConfigError
from storage.eviction.policy import Held

log = logging.getLogger(__name__)


class Foreign:
    """Asks the policy of a plug-in; it can neither evict what may not leave nor stop a commit."""

    def __init__(self, name: str, policy: Any) -> None:
        """Raise ConfigError when `policy` is not an `Eviction`."""
        if not callable(getattr(policy, "order", None)):
            raise ConfigError(
                f"buffer.eviction: plug-in {name!r} gave a {type(policy).__name__} without `order`; see "
                "docs/how-to/plug-ins.md"
            )
        self._name, self._policy = name, policy
        self.newcomers_may_leave = bool(getattr(policy, "newcomers_may_leave", False))

    def order(self, frames: Sequence[Held], may_leave: Collection[int]) -> Iterator[int]:
        """Yield the plug-in's order without ids that it may not name, then what it left out, the oldest first."""
        left = dict.fromkeys(frame.id for frame in frames if frame.id in may_leave)
        try:
            for id in self._policy.order(frames, may_leave):
                if id in left:
                    del left[id]
                    yield id
        except Exception as error:  # noqa: BLE001  whatever that package raises
            log.error("eviction plug-in %s failed, the oldest frames leave instead: %r", self._name, error)
        yield from left
