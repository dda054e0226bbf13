"""Prometheus metrics of the inference plane, in a registry of their own; what alerts look at starts at 0.

Names and labels are documented in `docs/metrics.md`. Units are in the names.
"""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

from daemon.serving.mask_metrics import MaskMetrics

SWAP_PHASES = ("verify", "drain", "load", "warmup")
ENDPOINTS = ("/v1/segment", "/v2/models/{model}/infer")
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64)


class ServingMetrics:
    """All metrics of one inference plane."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._add_requests()
        self._add_batches()
        self._add_swaps()
        self._add_shadow()
        self.masks = MaskMetrics(self.registry)

    def _add_requests(self) -> None:
        registry = self.registry
        self.requests = Counter(
            "mfmd_requests",
            "HTTP requests answered, by endpoint and status code",
            ["endpoint", "code"],
            registry=registry,
        )
        self.request_seconds = Histogram(
            "mfmd_request_seconds", "Time to answer a request (s)", ["endpoint"], buckets=SECONDS, registry=registry
        )
        self.refused = Counter(
            "mfmd_requests_refused", "Requests answered with an error, by its code", ["reason"], registry=registry
        )
        for endpoint in ENDPOINTS:
            for code in ("200", "500", "503"):
                self.requests.labels(endpoint=endpoint, code=code)

    def _add_batches(self) -> None:
        registry = self.registry
        self.batch_size = Histogram(
            "mfmd_batch_size", "Images answered together", buckets=BATCH_SIZES, registry=registry
        )
        self.batch_seconds = Histogram(
            "mfmd_batch_seconds", "Time to answer a batch (s)", buckets=SECONDS, registry=registry
        )
        self.queue_depth = Gauge("mfmd_queue_depth", "Images that wait for a batch", registry=registry)

    def _add_swaps(self) -> None:
        registry = self.registry
        self.swaps = Counter("mfmd_swap", "Attempts to serve another version, by result", ["result"], registry=registry)
        self.swap_seconds = Histogram(
            "mfmd_swap_seconds", "Time of each phase of a swap (s)", ["phase"], buckets=SECONDS, registry=registry
        )
        self.rollbacks = Counter(
            "mfmd_serving_rollbacks",
            "Swaps to a version older than the one that served: a flip to weights still resident, or read from disk",
            ["weights"],
            registry=registry,
        )
        self.version = Gauge("mfmd_serving_version", "Version that serves; 0 before the first", registry=registry)
        self.wanted = Gauge(
            "mfmd_serving_wanted_version", "Version that the serving ref names; 0: none", registry=registry
        )
        self.version_info = Gauge(
            "mfmd_serving_version_info", "1 for the version that serves", ["version", "sha256"], registry=registry
        )
        for result in ("ok", "failed"):
            self.swaps.labels(result=result)
        for phase in SWAP_PHASES:
            self.swap_seconds.labels(phase=phase)
        for weights in ("resident", "disk"):
            self.rollbacks.labels(weights=weights)

    def _add_shadow(self) -> None:
        registry = self.registry
        self.shadow_images = Counter(
            "mfmd_shadow_images",
            "Images that a candidate should run on in the shadow of the serving version, by what came of it",
            ["result"],
            registry=registry,
        )
        self.shadow_agreement = Gauge(
            "mfmd_shadow_agreement", "Share of pixels with the same label as served, since it began", registry=registry
        )
        self.shadow_version = Gauge("mfmd_shadow_version", "Candidate that runs; 0: none", registry=registry)
        self.shadow_failed = Counter(
            "mfmd_shadow_failed", "Candidates that could not be loaded as a shadow", registry=registry
        )
        for result in ("compared", "dropped", "failed"):
            self.shadow_images.labels(result=result)

    def watch_queue(self, depth: Callable[[], int]) -> None:
        """Let `mfmd_queue_depth` ask `depth` at every scrape."""
        self.queue_depth.set_function(depth)

    def serve(self, version: int, digest: str) -> None:
        """Record that `version`, whose weights have SHA-256 `digest`, serves from now on."""
        self.version.set(version)
        self.version_info.clear()
        self.version_info.labels(version=str(version), sha256=digest[:12]).set(1)

    def withdraw(self) -> None:
        """Record that no version serves."""
        self.version.set(0)
        self.version_info.clear()

    def render(self) -> bytes:
        """Everything in the Prometheus text format."""
        return generate_latest(self.registry)
