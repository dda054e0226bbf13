"""A part of the daemon that runs in its own thread: a step that is called repeatedly and may fail.

An error in a step is counted, logged once a minute and retried after a growing delay; no other part is affected. After
a lost fsync the part stops for good, because written data may be lost.
"""

import threading
import time
from collections.abc import Callable
from typing import Protocol

from daemon.errors import describe_error
from daemon.runtime.backoff import Backoff
from daemon.runtime.logs import Lasting, get_logger
from storage.errors import DurabilityLost, StorageError

RETRIES = Backoff(base=0.5, cap=30.0)
"""Delays after failed steps."""
STUCK_SECONDS = 120.0
"""A worker that did not end a step for so long is stuck (seconds); a commit on a slow disk is not."""
JOIN_SECONDS = 5.0
"""How long a worker may take at the end for the step it is in (seconds)."""

log = get_logger(__name__)


class WorkerMeter(Protocol):
    """Counts ticks and restarts."""

    def ticked(self, component: str) -> None:
        """Count a finished step."""

    def restarted(self, component: str) -> None:
        """Count a failed step that is tried again."""


class Worker:
    """Calls `step` in a thread until it is stopped; each step returns the seconds until the next."""

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
        """Set up; setting `wake` runs the next step at once."""
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
        self._lasting = Lasting()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self.last_tick = time.monotonic()
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Return whether its thread runs."""
        return self._thread.is_alive()

    def ask_to_stop(self) -> None:
        """Prevent new steps; a running one completes."""
        self._stop.set()
        self._wake.set()

    @property
    def stuck(self) -> bool:
        """Return whether a step takes longer than `stuck_seconds`."""
        return time.monotonic() - self.last_tick > self._stuck_seconds

    def join(self) -> bool:
        """Wait for the thread's end; return False on timeout."""
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
                known = isinstance(error, OSError | StorageError)  # where it comes from is of no use then
                pause, self.last_error = self._retries.delay(failures), describe_error(error)
                if not known:
                    self.last_error = f"{type(error).__name__}: {error}"
                self._meter.restarted(self.name)
                if self._lasting.due(self.last_error):
                    facts = {"component": self.name, "error": self.last_error, "retry_in": pause}
                    log.error("component_failed", **facts, exc_info=not known)
            self.last_tick = time.monotonic()
            self._meter.ticked(self.name)
            self._wake.wait(pause)
            self._wake.clear()
