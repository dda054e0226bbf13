"""Prometheus metrics of the inference plane, in a registry of their own; what alerts look at starts at 0.

Names and labels are documented in `docs/reference/metrics.md`. Units are in the names.
"""

import threading
from collections.abc import Sequence

from prometheus_client import CollectorRegistry

from configs.settings import Settings
from daemon.net.plane_metrics import PlaneMetrics
from daemon.runtime.metric_table import counter, gauge, histogram
from daemon.serving.errors import CODES
from storage.durable.digest import short

SWAP_PHASES = ("verify", "drain", "load", "warmup")
ENDPOINTS = ("/v1/segment", "/v2/models/{model}/infer", "/v2/models/{model}/versions/{version}/infer")
"""Those that a model answers."""
STATUSES = ("200", "400", "401", "404", "408", "413", "415", "422", "500", "503")
SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64)


class ServingMetrics(PlaneMetrics):
    """All metrics of one inference plane."""

    requests = counter(
        "mfmd_requests",
        "Answered HTTP requests, by endpoint and status code",
        endpoint=ENDPOINTS,
        code=STATUSES,
    )
    request_seconds = histogram(
        "mfmd_request_seconds",
        "Time to answer a request (seconds), by endpoint and by the version that answered it; 0: no version did. Only "
        "versions in memory have series",
        SECONDS,
        endpoint=ENDPOINTS,
        version=("0",),
    )
    refused = counter("mfmd_requests_refused", "Requests answered with an error, by its code", reason=CODES)
    batch_size = histogram("mfmd_batch_size", "Images per batch", BATCH_SIZES)
    batch_seconds = histogram("mfmd_batch_seconds", "Time to answer a batch (seconds)", SECONDS)
    queue_depth = gauge("mfmd_queue_depth", "Images waiting for a batch")
    queue_capacity = gauge(
        "mfmd_queue_capacity_images", "Images that may wait for a batch; a request with more is answered with 503"
    )
    swaps = counter("mfmd_swap", "Swaps to another version, by result", result=("ok", "failed"))
    swap_seconds = histogram("mfmd_swap_seconds", "Time of each phase of a swap (seconds)", SECONDS, phase=SWAP_PHASES)
    rollbacks = counter(
        "mfmd_serving_rollbacks",
        "Swaps to an older version: a flip to resident weights, or read from disk",
        weights=("resident", "disk"),
    )
    version = gauge("mfmd_serving_version", "Version that serves; 0 before the first")
    wanted = gauge("mfmd_serving_wanted_version", "Version that the serving ref names; 0: none, NaN: it cannot be read")
    version_info = gauge("mfmd_serving_version_info", "1 for the version that serves", version=(), sha256=())
    shadow_images = counter(
        "mfmd_shadow_images",
        "Images for a candidate in the shadow of the serving version, by result",
        result=("compared", "dropped", "failed"),
    )
    shadow_agreement = gauge("mfmd_shadow_agreement", "Share of pixels with the served label since the shadow began")
    shadow_version = gauge("mfmd_shadow_version", "Version in the shadow; 0: none")
    shadow_failed = counter("mfmd_shadow_failed", "Candidates that could not be loaded as a shadow")

    def __init__(self, settings: Settings) -> None:
        self.registry = CollectorRegistry()
        super().__init__(self.registry, settings)
        self.queue_capacity.set(settings.serving.advanced.queue_images)
        self._lock = threading.Lock()  # a late answer must not bring the series of a version back
        self._versions: set[str] = set()

    def answered(self, endpoint: str, code: int, version: str, seconds: float) -> None:
        """Count a request; `version` is the one that answered, empty if none did."""
        self.requests.labels(endpoint=endpoint, code=str(code)).inc()
        with self._lock:
            known = version if version in self._versions else "0"
            self.request_seconds.labels(endpoint=endpoint, version=known).observe(seconds)

    def serve(self, version: int, digest: str, resident: Sequence[int]) -> None:
        """Record that `version`, whose weights have SHA-256 `digest`, serves now, and which versions are `resident`."""
        with self._lock:
            gone, self._versions = self._versions, set(map(str, resident))
            for endpoint in ENDPOINTS:
                for old in gone - self._versions:
                    self.request_seconds.remove(endpoint, old)
                for new in self._versions:
                    self.request_seconds.labels(endpoint, new)
        self.version.set(version)
        self.version_info.clear()
        self.version_info.labels(version=str(version), sha256=short(digest)).set(1)
