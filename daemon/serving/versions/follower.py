"""Follow the registry's serving ref: the thread that requests swaps, and remembers why the last one failed."""

import os
import threading
import time
from collections.abc import Callable

from pydantic import BaseModel, ConfigDict

from daemon.errors import code_of
from daemon.runtime.backoff import Backoff
from daemon.runtime.logs import get_logger
from daemon.serving.metrics import ServingMetrics
from daemon.serving.versions.slots import Slots
from daemon.serving.versions.swap import Swapper
from storage.registry.manifest import Ref
from storage.registry.registry import CheckpointRegistry

RETRIES = Backoff(base=1.0, cap=60.0)
"""Delays after swaps that failed."""
NICENESS = 5
"""Nice value of this thread and of the threads that torch starts for it: loading yields to serving."""

log = get_logger(__name__)


class SwapFailure(BaseModel):
    """Why a version could not serve."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    version: int | None
    """The version; None when the ref itself could not be read."""
    code: str
    """Stable code, for example `checkpoint_corrupt`."""
    reason: str
    """One sentence."""
    at: float
    """Unix time of the last attempt (seconds)."""
    attempts: int
    """Attempts since the ref named this version."""


class Follower:
    """Polls the ref every `interval` seconds and makes the version it names live.

    A version that fails is retried after 1, 2, 4 ... 60 seconds, or at once when the ref moves. When nothing is live (a
    start with a corrupt serving version), the version that served before is tried instead.
    """

    def __init__(
        self,
        registry: CheckpointRegistry,
        slots: Slots,
        swapper: Swapper,
        metrics: ServingMetrics,
        interval: float,
        also: Callable[[], None] | None = None,
    ) -> None:
        """Prepare it; `also` is called after each poll, in the same thread, and must not raise."""
        self._also = also
        self._registry = registry
        self._slots = slots
        self._swapper = swapper
        self._metrics = metrics
        self._interval = interval
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="mfmd-follower", daemon=True)
        self._wanted: Ref | None = None
        self._failure: SwapFailure | None = None
        self._attempts = 0
        self._retry_at = 0.0
        self.failures = 0
        """Swaps that failed since the start."""
        self._unread = 0
        """Looks in a row that could not read the ref."""

    @property
    def wanted(self) -> Ref | None:
        """The serving ref as it was last read."""
        return self._wanted

    @property
    def failure(self) -> SwapFailure | None:
        """The last failure, kept after it is resolved; compare its version with `wanted`."""
        return self._failure

    @property
    def dead(self) -> bool:
        """Whether its thread ended although nobody stopped it."""
        return self._thread.ident is not None and not self._thread.is_alive() and not self._stop.is_set()

    def start(self) -> None:
        """Start the thread; the first poll is immediate."""
        self._thread.start()

    def stop(self, timeout: float) -> None:
        """End the thread after the swap it may be in; gives up after `timeout` seconds."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout)

    def _follow(self) -> None:
        be_nice()
        while not self._stop.is_set():
            self.look(time.monotonic())
            if self._also is not None:
                self._also()
            self._stop.wait(self._interval)

    def look(self, now: float) -> None:
        """Poll the ref once, at monotonic time `now`; swap if it names another version. Never raises."""
        try:
            ref = self._registry.serving()
        except Exception as error:  # noqa: BLE001 - whatever it is, this thread must live to see the next ref
            self._unread += 1
            if self._unread > 1 and now >= self._retry_at:  # one may fall between a first promotion's line and its ref
                self._note(None, error, now)
            return
        self._unread = 0
        if ref != self._wanted:
            self._wanted, self._attempts, self._retry_at = ref, 0, 0.0
        live = self._slots.live
        if ref is not None and live is not None and live.version == ref.version:
            self._attempts, self._retry_at = 0, 0.0  # the next failure is reported at once
            return
        if ref is None or now < self._retry_at:
            return
        if not self._try(ref.version, now) and live is None:
            self._fall_back(ref.version, now)

    def _try(self, version: int, now: float) -> bool:
        try:
            self._swapper.serve(version)
        except Exception as error:  # noqa: BLE001 - a version that cannot serve must not end the thread either
            self._note(version, error, now)
            return False
        self._attempts = 0
        return True

    def _fall_back(self, failed: int, now: float) -> None:
        """At a start, serve what served before rather than nothing; never a version that was rolled back from."""
        try:
            previous = self._registry.ref("previous")
            usable = previous is not None and previous.version not in self._registry.state().rolled_back | {failed}
        except Exception:
            log.exception("previous_unreadable")
            return
        if usable and previous is not None:
            log.warning("serving_previous_instead", version=previous.version, failed=failed)
            explained = self._failure, self._attempts, self._retry_at
            self._try(previous.version, now)
            self._failure, self._attempts, self._retry_at = explained  # what is to explain is the version wanted

    def _note(self, version: int | None, error: Exception, now: float) -> None:
        self._metrics.swaps.labels(result="failed").inc()
        self._attempts += 1
        self.failures += 1
        self._retry_at = now + RETRIES.delay(self._attempts)
        code = code_of(error)
        reason = f"{type(error).__name__}: {error}; the log has the traceback" if code == "unexpected" else str(error)
        self._failure = SwapFailure(version=version, code=code, reason=reason, at=time.time(), attempts=self._attempts)
        log.exception("swap_failed", version=version, code=code, attempts=self._attempts)


def be_nice() -> None:
    """Raise the nice value of the calling thread to `NICENESS`, where the system has priorities per thread (Linux).

    A process with a higher nice value keeps it, because not every user may lower it.
    """
    if hasattr(os, "setpriority"):
        thread = threading.get_native_id()
        os.setpriority(os.PRIO_PROCESS, thread, max(NICENESS, os.getpriority(os.PRIO_PROCESS, thread)))
