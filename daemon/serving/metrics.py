"""Prometheus metrics of the inference plane, in a registry of their own; what alerts look at starts at 0.

Names and labels are documented in `docs/reference/metrics.md`. Units are in the names.
"""

from prometheus_client import CollectorRegistry, ProcessCollector

from daemon.net.listening import excess_counter
from daemon.runtime.metric_table import MetricTable, counter, gauge, histogram

SWAP_PHASES = ("verify", "drain", "load", "warmup")
ENDPOINTS = ("/v1/segment", "/v2/models/{model}/infer")
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64)


class ServingMetrics(MetricTable):
    """All metrics of one inference plane."""

    requests = counter(
        "mfmd_requests",
        "Answered HTTP requests, by endpoint and status code",
        endpoint=ENDPOINTS,
        code=("200", "500", "503"),
    )
    request_seconds = histogram(
        "mfmd_request_seconds", "Time to answer a request (seconds)", SECONDS, endpoint=ENDPOINTS
    )
    refused = counter("mfmd_requests_refused", "Requests answered with an error, by its code", reason=())
    excess = excess_counter()
    batch_size = histogram("mfmd_batch_size", "Images per batch", BATCH_SIZES)
    batch_seconds = histogram("mfmd_batch_seconds", "Time to answer a batch (seconds)", SECONDS)
    queue_depth = gauge("mfmd_queue_depth", "Images waiting for a batch")
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

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        super().__init__(self.registry)
        ProcessCollector(registry=self.registry)

    def serve(self, version: int, digest: str) -> None:
        """Record that `version`, whose weights have SHA-256 `digest`, serves from now on."""
        self.version.set(version)
        self.version_info.clear()
        self.version_info.labels(version=str(version), sha256=digest[:12]).set(1)
