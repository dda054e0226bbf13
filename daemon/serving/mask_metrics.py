"""Prometheus metrics of masks that are written as files."""

from prometheus_client import CollectorRegistry, Counter, Gauge

RESULTS = ("written", "refused", "failed")


class MaskMetrics:
    """All of them, in the registry of the inference plane."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.results = Counter(
            "mfmd_masks",
            "Images of the drop folder that a mask was wanted for, by result: written, refused (no usable image), "
            "failed (a mask that could not be made or written)",
            ["result"],
            registry=registry,
        )
        self.pending = Gauge("mfmd_masks_pending", "Images that wait for their mask", registry=registry)
        self.active = Gauge(
            "mfmd_masks_active", "1 while this server writes masks; 0: off, stopped, or another does", registry=registry
        )
        self.folder_present = Gauge(
            "mfmd_masks_folder_present",
            "1 while the writer of masks can list the drop folder",
            registry=registry,
        )
        self.last_written = Gauge(
            "mfmd_masks_last_written_timestamp_seconds",
            "Unix time when the newest mask was written; 0: none since the start",
            registry=registry,
        )
        for result in RESULTS:
            self.results.labels(result=result)
