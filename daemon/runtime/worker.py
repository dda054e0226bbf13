"""A part of the daemon that runs in a thread of its own: a step, called again and again, that may fail and go on.

An error in a step is logged, counted and followed by another attempt after a growing delay; nothing else of the
daemon notices. A lost fsync is different: what was written may be lost, so the part stops for good.
"""

import threading
import time
from collections.abc import Callable
from typing import Protocol

from daemon.runtime.backoff import Backoff
from daemon.runtime.logs import get_logger
from storage.errors import DurabilityLost

RETRIES = Backoff(base=0.5, cap=30.0)
"""Delays after failed steps."""
STUCK_SECONDS = 120.0
"""A worker that did not end a step for so long is stuck (seconds); a commit on a slow disk is not."""
JOIN_SECONDS = 5.0
"""How long a worker may take at the end for the step it is in (seconds)."""

log = get_logger(__name__)


class WorkerMeter(Protocol):
    """Where ticks and restarts are counted."""

    def ticked(self, component: str) -> None:
        """A step ended."""

    def restarted(self, component: str) -> None:
        """A step failed and will be tried again."""


class Worker:
    """Calls `step` in a thread until it is stopped; each step says after how many seconds it wants the next."""

    def __init__(
        self,
        name: str,
        step: Callable[[], float],
        meter: WorkerMeter,
        retries: Backoff = RETRIES,
        *,
        wake: threading.Event | None = None,
        stuck_seconds: float = STUCK_SECONDS,
        join_seconds: float = JOIN_SECONDS,
    ) -> None:
        """`wake`: setting it calls the next step at once."""
        self.name = name
        self.last_error: str | None = None
        """What the last step failed with; None when it did not."""
        self.failed = False
        """Whether it stopped for good; `last_error` says why."""
        self.last_tick = time.monotonic()
        """When the last step ended (monotonic, seconds)."""
        self._step, self._meter, self._retries = step, meter, retries
        self._stuck_seconds, self._join_seconds = stuck_seconds, join_seconds
        self._wake, self._stop = wake or threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Begin."""
        self.last_tick = time.monotonic()
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether its thread runs."""
        return self._thread.is_alive()

    def ask_to_stop(self) -> None:
        """No step begins after this; a running one goes on to its end."""
        self._stop.set()
        self._wake.set()

    @property
    def stuck(self) -> bool:
        """Whether a step takes longer than steps of this worker may."""
        return time.monotonic() - self.last_tick > self._stuck_seconds

    def join(self) -> bool:
        """Wait for the end; false when it did not come in time."""
        if self._thread.ident is not None:
            self._thread.join(self._join_seconds)
        return not self._thread.is_alive()

    def _run(self) -> None:
        failures = 0
        while not self._stop.is_set():
            try:
                pause = self._step()
                failures, self.last_error = 0, None
            except DurabilityLost as error:
                self.failed, self.last_error = True, str(error)
                log.critical("component_stopped", component=self.name, reason=self.last_error, exc_info=True)
                return
            except Exception as error:  # whatever failed, the daemon goes on
                failures += 1
                pause, self.last_error = self._retries.delay(failures), f"{type(error).__name__}: {error}"
                self._meter.restarted(self.name)
                log.error("component_failed", component=self.name, error=str(error), retry_in=pause, exc_info=True)
            self.last_tick = time.monotonic()
            self._meter.ticked(self.name)
            self._wake.wait(pause)
            self._wake.clear()
