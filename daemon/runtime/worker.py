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

log = get_logger(__name__)


class ComponentMeter(Protocol):
    """Where ticks and restarts are counted."""

    def ticked(self, component: str) -> None:
        """A step ended."""

    def restarted(self, component: str) -> None:
        """A step failed and will be tried again."""


class Component:
    """Calls `step` in a thread until it is stopped; each step says after how many seconds it wants the next."""

    def __init__(self, name: str, step: Callable[[], float], meter: ComponentMeter, retries: Backoff = RETRIES) -> None:
        self.name = name
        self.trouble: str | None = None
        """What the last step failed with; none when it did not."""
        self.failed = False
        """Whether it stopped for good; `trouble` says why."""
        self.last_tick = time.monotonic()
        """When the last step ended (monotonic, seconds)."""
        self._step, self._meter, self._retries = step, meter, retries
        self._wake, self._stop = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Begin."""
        self.last_tick = time.monotonic()
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether its thread runs."""
        return self._thread.is_alive()

    def wake(self) -> None:
        """Call the next step now."""
        self._wake.set()

    def ask_to_stop(self) -> None:
        """No step begins after this; a running one goes on to its end."""
        self._stop.set()
        self._wake.set()

    def join(self, seconds: float) -> bool:
        """Wait for the end; false when it did not come in time."""
        if self._thread.ident is not None:
            self._thread.join(seconds)
        return not self._thread.is_alive()

    def _run(self) -> None:
        failures = 0
        while not self._stop.is_set():
            try:
                pause = self._step()
                failures, self.trouble = 0, None
            except DurabilityLost as error:
                self.failed, self.trouble = True, str(error)
                log.critical("component_stopped", component=self.name, reason=self.trouble, exc_info=True)
                return
            except Exception as error:  # whatever failed, the daemon goes on
                failures += 1
                pause, self.trouble = self._retries.delay(failures), f"{type(error).__name__}: {error}"
                self._meter.restarted(self.name)
                log.error("component_failed", component=self.name, error=str(error), retry_in=pause, exc_info=True)
            self.last_tick = time.monotonic()
            self._meter.ticked(self.name)
            self._wake.wait(pause)
            self._wake.clear()
