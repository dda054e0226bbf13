"""Follow the registry's refs: the thread that requests swaps and shadows, and remembers why the last swap failed."""

import time

from pydantic import BaseModel, ConfigDict

from daemon.errors import code_of
from daemon.runtime.backoff import Backoff
from daemon.runtime.logs import Lasting, get_logger
from daemon.serving.threads import PlaneThread, be_nice
from daemon.serving.versions.slots import Resident
from daemon.serving.versions.swap import Swapper
from storage.errors import StorageError
from storage.registry.manifest import Ref

RETRIES = Backoff(base=1.0, cap=60.0)
"""Delays after swaps that failed."""

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


class Follower(PlaneThread):
    """Polls the serving ref and makes the version it names live; keeps the shadow's version in the idle slot.

    A version that fails is retried after 1, 2, 4 ... 60 seconds, or at once when the ref moves. At a start another
    version is tried instead: the one that served before a corrupt one, or, when the ref cannot be read, the one that
    served last by the history. A shadow that fails is retried when either version changes.
    """

    def __init__(self, swapper: Swapper) -> None:
        super().__init__("mfmd-follower")
        self._swapper, self._settings = swapper, swapper.settings
        self._registry, self._slots, self._metrics = swapper.registry, swapper.slots, swapper.metrics
        self.wanted: Ref | None = None
        """The serving ref as it was last read."""
        self.failure: SwapFailure | None = None
        """The last failure, kept after it is resolved; compare its version with `wanted`."""
        self.failures = 0
        """Swaps that failed since the start."""
        self._attempts, self._retry_at = 0, 0.0
        self._lasting = Lasting()
        self._unread = 0
        """Polls in a row that could not read the ref."""
        self._failed_shadow: tuple[Ref | None, int] | None = None
        """Ref and live version of the last shadow that failed."""

    @property
    def unreadable(self) -> bool:
        """Whether the serving ref cannot be read; one look may fall between a first promotion's line and its ref."""
        return self._unread > 1

    def run(self) -> None:
        """Poll until stopped."""
        be_nice()  # loading yields to serving
        while not self.stopping.is_set():
            self.poll(time.monotonic())
            if self._settings.shadow_fraction:
                self.poll_shadow()
            self.stopping.wait(self._settings.advanced.follow_seconds)

    def poll(self, now: float) -> None:
        """Poll the ref once, at monotonic time `now`; swap if it names another version. Never raises."""
        try:
            ref = self._registry.serving()
        except Exception as error:  # noqa: BLE001 - whatever it is, this thread must live to see the next ref
            self._unread += 1
            if self.unreadable and now >= self._retry_at:
                self._record_failure(None, error, now)
                if self._slots.live is None:
                    self._fall_back(None, now)
            return
        self._unread = 0
        if ref != self.wanted:
            self.wanted, self._attempts, self._retry_at = ref, 0, 0.0
            if ref is not None:
                log.info("version_wanted", version=ref.version, by=ref.by, reason=ref.reason)
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
            self._record_failure(version, error, now)
            return False
        self._attempts = 0
        return True

    def _fall_back(self, failed: int | None, now: float) -> None:
        """At a start, serve another version rather than nothing; `failed` is the one wanted, None if unknown."""
        try:
            version = self._instead_of(failed)
        except StorageError as error:
            if self._lasting.due(str(error)):
                log.error("no_other_version", error=str(error))
            return
        if version is not None:
            log.warning("serving_another_instead", version=version, failed=failed)
            explained = self.failure, self._attempts, self._retry_at
            self._try(version, now)
            self.failure, self._attempts, self._retry_at = explained  # what is to explain is the version wanted

    def _instead_of(self, failed: int | None) -> int | None:
        """Return what served before `failed`, never a version that was rolled back; for None, what served last."""
        state = self._registry.state()
        if failed is None:  # its line was durable before the ref moved: `mfmd check --repair` writes the same
            return state.serves_last
        previous = self._registry.ref("previous")
        return previous.version if previous and previous.version not in state.rolled_back | {failed} else None

    def _record_failure(self, version: int | None, error: Exception, now: float) -> None:
        self._metrics.swaps.labels(result="failed").inc()
        self._attempts += 1
        self.failures += 1
        self._retry_at = now + RETRIES.delay(self._attempts)
        code = code_of(error)
        reason = f"{type(error).__name__}: {error}; the log has the traceback" if code == "unexpected" else str(error)
        before, told = self.failure, self._attempts > 1
        self.failure = SwapFailure(version=version, code=code, reason=reason, at=time.time(), attempts=self._attempts)
        if not told or before is None or before.reason != reason:  # the same again is counted
            log.error("swap_failed", **self.failure.model_dump(exclude={"at"}), exc_info=code == "unexpected")

    def poll_shadow(self) -> None:
        """Poll the shadow's ref once; load what it names into the idle slot, or free that. Never raises."""
        live, ref = self._slots.live, None
        if live is None:
            return
        try:
            ref = self._registry.ref("shadow")
            if (ref, live.version) != self._failed_shadow:
                self._follow_shadow(ref, live.version)
        except Exception as error:
            self._failed_shadow = ref, live.version
            self._metrics.shadow_failed.inc()
            unexpected = code_of(error) == "unexpected"
            log.error("shadow_failed", version=ref and ref.version, error=str(error), exc_info=unexpected)
        shadow = self._slots.shadow
        self._metrics.shadow_version.set(shadow.version if shadow else 0)

    def _follow_shadow(self, ref: Ref | None, live: int) -> None:
        shadow = self._slots.shadow
        if ref is not None and ref.version != live:
            if shadow is None or shadow.version != ref.version:
                self._swapper.shadow(ref.version)
        elif shadow is not None and not self._is_promoted(shadow):
            self._swapper.end_shadow()

    def _is_promoted(self, shadow: Resident) -> bool:
        """Return whether the shadow was promoted since the last poll of the serving ref: the next poll flips to it.

        A promotion moves `serving` before the shadow's ref is removed. A poll that sees only the removal would free the
        slot for nothing, and read the weights again.
        """
        serving = self._registry.readable_refs()[0].get("serving")
        return serving is not None and serving.version == shadow.version
