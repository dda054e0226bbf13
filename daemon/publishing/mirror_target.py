"""One mirror on its way to the serving version: export what is missing, point the link, remove old copies."""

import time

from daemon.errors import PublishFailed
from daemon.metrics import PublishMetrics
from daemon.publishing.export import MirrorExport
from daemon.runtime.activity import MirrorActivity
from daemon.runtime.backoff import Backoff
from daemon.runtime.logs import get_logger
from storage.errors import DurabilityLost, StorageError
from storage.registry.mirrors import Mirror
from storage.registry.registry import CheckpointRegistry
from storage.registry.versions import WEIGHTS

log = get_logger(__name__)


class MirrorTarget:
    """One mirror and its progress."""

    def __init__(
        self,
        mirror: Mirror,
        export: MirrorExport,
        registry: CheckpointRegistry,
        metrics: PublishMetrics,
        retries: Backoff,
    ) -> None:
        self.export = export
        self.state = MirrorActivity(name=mirror.name, folder=str(mirror.folder))
        self._mirror, self._registry, self._metrics, self._retries = mirror, registry, metrics, retries
        self._wanted: int | None = None
        self._left: int | None = None
        self._retry_at = 0.0

    def tick(self, wanted: int, now: float) -> None:
        """Go one step towards `wanted`. Never raises an error that a mirror can cause."""
        if self.state.state == "stopped":
            return
        if wanted != self._wanted:
            self._wanted, self._retry_at = wanted, 0.0
            self._set(state="waiting", failures=0, next_attempt=None)
            self.export.stop()  # of a version that no longer serves
        try:
            self._advance(wanted, now)
        except DurabilityLost as error:  # what was written may be gone: no more of it, and no reason to stop the rest
            self._fail(error, now)
            self._set(state="stopped", next_attempt=None)
        except (StorageError, PublishFailed, OSError) as error:
            self._fail(error, now)

    def _advance(self, wanted: int, now: float) -> None:
        waits = now < self._retry_at
        self._look(waits)
        if (self.export.running and not self.export.finished(now)) or waits:
            return
        if not self._mirror.holds(wanted, self._registry.manifest(wanted).files[WEIGHTS].sha256):
            self.export.start(wanted, now)
            self._set(state="exporting")
            return
        if not self._mirror.leads_to(wanted):
            self._left = self._mirror.current()
            self._mirror.point(wanted)
            self._metrics.results.labels(mirror=self._mirror.name, result="ok").inc()
            self._show(wanted)
            log.info("published", mirror=self._mirror.name, version=wanted, folder=str(self._mirror.folder))
        if self.state.state != "current":
            self._mirror.prune(self._needed(wanted))
            self._set(state="current", failures=0, reason="", next_attempt=None)

    def _needed(self, wanted: int) -> set[int]:
        """Return the serving version, the rollback target, and the earlier target, which readers may still use."""
        previous = self._registry.ref("previous")
        return {wanted, previous.version if previous else wanted, wanted if self._left is None else self._left}

    def _look(self, waits: bool) -> None:
        """Report the target of the mirror; an unreadable mirror is a failure when the next attempt is due."""
        try:
            self._show(self._mirror.current())
        except OSError:
            if not waits:
                raise

    def _show(self, version: int | None) -> None:
        self._set(version=version)
        self._metrics.version.labels(mirror=self._mirror.name).set(version or 0)

    def _set(self, **changes: object) -> None:
        self.state = self.state.model_copy(update=changes)

    def _fail(self, error: Exception, now: float) -> None:
        failures = self.state.failures + 1
        delay = self._retries.delay(failures)
        self._retry_at = now + delay
        self._metrics.results.labels(mirror=self._mirror.name, result="failed").inc()
        self._set(state="failed", failures=failures, reason=str(error), next_attempt=time.time() + delay)
        log.error("publish_failed", mirror=self._mirror.name, version=self._wanted, error=str(error), retry_in=delay)
