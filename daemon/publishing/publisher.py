"""Keep mirrors at the serving version (`publish`): after every promotion and rollback, while the daemon runs.

The publisher polls the serving ref, like an inference plane. It counts, reports and retries failures; nothing waits for
it.
"""

import time
from pathlib import Path

from configs.folders import overlap
from configs.settings import Settings
from daemon.errors import PublishFailed
from daemon.metrics import PublishMetrics
from daemon.publishing.export import MirrorExport
from daemon.runtime.activity import MirrorActivity
from daemon.runtime.backoff import Backoff
from daemon.runtime.logs import get_logger
from storage.errors import DurabilityLost, StorageError
from storage.layout import StateLayout
from storage.registry.mirrors import HuggingFaceMirror, Mirror, TritonMirror
from storage.registry.registry import CheckpointRegistry
from storage.registry.versions import WEIGHTS

log = get_logger(__name__)

POLL_SECONDS = 0.5
"""Interval at which the serving ref is polled (seconds)."""
RETRIES = Backoff(base=5.0, cap=600.0, jitter=0.2)
"""Delays after failures; a change of the serving version is tried at once."""


class Publisher:
    """Keeps every configured mirror at the serving version. `step` belongs to one thread."""

    def __init__(
        self,
        settings: Settings,
        config: Path,
        registry: CheckpointRegistry,
        metrics: PublishMetrics,
        retries: Backoff = RETRIES,
    ) -> None:
        """`config`: the file that exports read these settings from."""
        self._registry = registry
        layout, publish = StateLayout(settings.state), settings.publish
        mirrors: list[Mirror] = []
        if publish.triton is not None:
            mirrors.append(TritonMirror(publish.triton, settings.serving.max_batch_images))
        if publish.huggingface is not None:
            mirrors.append(HuggingFaceMirror(publish.huggingface))
        self._targets = [
            _Target(mirror, MirrorExport(mirror, config, layout), settings, registry, metrics, retries)
            for mirror in mirrors
        ]

    def step(self) -> float:
        """Bring mirrors closer to the serving version; return the seconds until the next call."""
        serving = self._registry.readable_refs()[0].get("serving") if self._targets else None
        for target in self._targets:
            if serving is not None:
                target.tick(serving.version, time.monotonic())
        return POLL_SECONDS

    def states(self) -> list[MirrorActivity]:
        """Return the state of each mirror."""
        return [target.state for target in self._targets]

    def stop(self) -> None:
        """Stop running exports; the next one removes their leftovers. Call after the last step."""
        for target in self._targets:
            target.export.stop()


class _Target:
    """One mirror on its way: export what is missing, point readers to it, remove old copies."""

    def __init__(
        self,
        mirror: Mirror,
        export: MirrorExport,
        settings: Settings,
        registry: CheckpointRegistry,
        metrics: PublishMetrics,
        retries: Backoff,
    ) -> None:
        self.export = export
        self.state = MirrorActivity(name=mirror.name, folder=str(mirror.folder))
        self._mirror, self._registry, self._metrics, self._retries = mirror, registry, metrics, retries
        self._settings = settings
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
        try:
            self._show(self._mirror.current())
        except OSError:
            if not waits:  # an unreadable mirror is a failure when the next attempt is due
                raise
        if (self.export.running and not self.export.finished(now)) or waits:
            return
        held = self._mirror.holds(wanted, self._registry.manifest(wanted).files[WEIGHTS].sha256)
        if held and self._mirror.leads_to(wanted) and self.state.state == "current":
            return
        if overlapping := overlap(self._settings):
            raise PublishFailed(f"nothing is written, because of where a link leads now: {overlapping}")
        if not held:
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
            previous = self._registry.ref("previous")
            # the target before this one, too: readers may still load it
            self._mirror.prune({wanted, self._left, previous.version if previous else None})
            self._set(state="current", failures=0, reason="", next_attempt=None)

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
