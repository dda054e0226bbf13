"""Reaction of a round to SIGTERM: at once while it loads or scores, at the end of the step while it trains."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Self

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class RoundStopped(BaseException):
    """Raised inside `StopRequest.interruptible` by SIGTERM; no `Exception`, so nothing mistakes it for a failure."""


class StopRequest:
    """Handles SIGTERM and SIGINT while it is entered; import and enter it before anything slow."""

    def __init__(self) -> None:
        self.requested = False
        """Whether a signal arrived."""
        self._interruptible = False

    def __enter__(self) -> Self:
        self._previous = [signal.signal(number, self._handle) for number in SIGNALS]
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in zip(SIGNALS, self._previous, strict=True):
            signal.signal(number, handler)

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Make a signal raise RoundStopped at once inside the context, also an earlier one."""
        self._interruptible = True
        try:
            if self.requested:
                raise RoundStopped
            yield
        finally:
            self._interruptible = False

    def _handle(self, _signal: int, _frame: FrameType | None) -> None:
        # A launcher passes on the signal that the whole process group got: a second one must not cut the end short.
        first, self.requested = not self.requested, True
        if first and self._interruptible:
            raise RoundStopped
