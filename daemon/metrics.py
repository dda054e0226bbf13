"""Prometheus metrics of the control plane: what its threads count while they work.

What can be read from storage at any time is not counted here but collected at scrape time: `state_metrics.py`.
Every series starts at 0, so that a rate is right from the first event on; times are timestamps, never ages.
"""

import hashlib
import platform
import threading
from importlib import metadata

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.exposition import choose_encoder

from configs.settings import Settings
from daemon.runtime.activity import MODES
from storage.buffer.catalog_records import SKIP_REASONS

COMPONENTS = ("ingest", "rounds", "supervisor", "publish", "activity")
MIRRORS = ("triton", "huggingface")
OUTCOMES = ("stored", "not_kept", "duplicate", "skipped", "rejected")
CHILDREN = ("serve", "observe")
REASONS = (
    "empty", "too_many_bytes", "too_many_pixels", "aspect", "not_an_image", "needs_extra", "truncated", "unreadable",
    "outside_folder",
)  # fmt: skip
RESULTS = ("promoted", "rejected", "inconclusive", "failed", "stopped")
DECISIONS = ("accepted", "rejected", "inconclusive")
LATENCY_SECONDS = (0.5, 1.0, 2.0, 3.0, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0, 7200.0)
COMMIT_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
ROUND_SECONDS = (10, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 14400, 21600)


class IngestMetrics:
    """Drop folder and ingest."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._add_watcher(registry)
        self.files = Counter(
            "mfmd_ingest_files",
            "Files dealt with since the daemon started, by outcome: stored as a frame, not_kept (committed, and left "
            "at once: the reservoir keeps others), duplicate of content that was stored before, skipped by admission, "
            "rejected with a reason",
            ["outcome"],
            registry=registry,
        )
        self.rejected = Counter(
            "mfmd_ingest_rejected",
            "Files refused since the daemon started, by reason; `mfmd status` and the catalog name them",
            ["reason"],
            registry=registry,
        )
        self.skipped = Counter(
            "mfmd_ingest_skipped",
            "Files that admission left out since the daemon started, by reason",
            ["reason"],
            registry=registry,
        )
        self.bytes = Counter("mfmd_ingest_bytes", "Bytes of image files that were stored as frames", registry=registry)
        self.retries = Counter(
            "mfmd_ingest_retries", "Files put back after a passing error (I/O error, file changed)", registry=registry
        )
        self.latency = Histogram(
            "mfmd_ingest_latency_seconds",
            "Time from a file's last modification to its durable commit (seconds); includes the stability delay",
            buckets=LATENCY_SECONDS,
            registry=registry,
        )
        self.commit_seconds = Histogram(
            "mfmd_buffer_commit_seconds",
            "Time to make one group of frames durable: shards, fsync, one SQLite transaction (seconds)",
            buckets=COMMIT_SECONDS,
            registry=registry,
        )
        self.paused = Gauge(
            "mfmd_ingest_paused",
            "1 while ingest waits for disk space or for a free slot; files stay in the folder meanwhile",
            registry=registry,
        )
        self.last_stored = Gauge(
            "mfmd_ingest_last_stored_timestamp_seconds",
            "Unix time of the newest commit since the daemon started; 0 before the first",
            registry=registry,
        )
        for outcome in OUTCOMES:
            self.files.labels(outcome=outcome)
        for reason in REASONS:
            self.rejected.labels(reason=reason)
        for reason in SKIP_REASONS:
            self.skipped.labels(reason=reason)

    def _add_watcher(self, registry: CollectorRegistry) -> None:
        self.events = Counter(
            "mfmd_watcher_events", "File events heard from the kernel; hints, not a count of files", registry=registry
        )
        self.overflows = Counter(
            "mfmd_watcher_overflows",
            "Times that events were lost because they came too fast; a rescan follows each",
            registry=registry,
        )
        self.restarts = Counter(
            "mfmd_watcher_restarts",
            "Times that the event observer was started again: it died, or the folder vanished and came back",
            registry=registry,
        )
        self.rescans = Counter("mfmd_watcher_rescans", "Rescans of the drop folder", registry=registry)
        self.rescan_found = Counter(
            "mfmd_watcher_rescan_found", "Files that a rescan found and no event had announced", registry=registry
        )
        self.rescan_seconds = Gauge(
            "mfmd_watcher_rescan_seconds", "How long the last rescan took (seconds)", registry=registry
        )
        self.folder_present = Gauge(
            "mfmd_watcher_folder_present",
            "1 while the drop folder exists and can be listed, 0 while it is waited for",
            registry=registry,
        )
        self.mode = Gauge(
            "mfmd_watcher_mode_info",
            "1 for the mode in force and its reason: events (kernel events and rescan) or polling (rescan only)",
            ["mode", "reason"],
            registry=registry,
        )
        self.state = Gauge(
            "mfmd_watcher_state_info",
            "1 for the state of the drop folder: starting, watching, missing, unmounted (its marker is absent), "
            "unreadable, stopped",
            ["state"],
            registry=registry,
        )
        self.pending = Gauge(
            "mfmd_ingest_pending_files", "Files in the drop folder that were not dealt with yet", registry=registry
        )
        self.oldest_pending = Gauge(
            "mfmd_ingest_oldest_pending_timestamp_seconds",
            "Modification time of the oldest pending file that was looked at (Unix, seconds); 0 when none waits",
            registry=registry,
        )
        for mode, reason in MODES:
            self.mode.labels(mode, reason)


class RoundMetrics:
    """Rounds and the gate."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.runs = Counter(
            "mfmd_round_runs",
            "Rounds ended since the daemon started, by result: promoted, rejected, inconclusive (the incumbent "
            "stays), failed (crash, time-out, non-finite loss), stopped (the daemon was stopped)",
            ["result"],
            registry=registry,
        )
        self.seconds = Histogram(
            "mfmd_round_duration_seconds",
            "Wall time of a round from its start to its scores (seconds)",
            buckets=ROUND_SECONDS,
            registry=registry,
        )
        self.in_progress = Gauge("mfmd_round_in_progress", "1 while a round runs", registry=registry)
        self.step = Gauge("mfmd_round_step", "Steps done by the running or last round", registry=registry)
        self.loss = Gauge(
            "mfmd_round_loss",
            "Loss of the running or last round, by part: source, mix, mfm",
            ["part"],
            registry=registry,
        )
        self.kept_ratio = Gauge(
            "mfmd_round_pseudo_label_kept_ratio",
            "Share of pseudo-label pixels above the confidence threshold in the running or last round (0-1)",
            registry=registry,
        )
        self.images_per_second = Gauge(
            "mfmd_round_images_per_second",
            "Training rate of the running or last round (source and target images a second)",
            registry=registry,
        )
        self.shadow_images = Gauge(
            "mfmd_round_shadow_images",
            "Live images that the candidate of the running or last round was compared on in the shadow, all planes",
            registry=registry,
        )
        self.shadow_agreement = Gauge(
            "mfmd_round_shadow_agreement",
            "Share of their pixels with the label that was served (0-1); 0 before the first",
            registry=registry,
        )
        self.verdicts = Counter(
            "mfmd_gate_verdicts",
            "Verdicts of the gate since the daemon started, by decision; failed and stopped rounds get one too",
            ["decision"],
            registry=registry,
        )
        self.failures = Counter(
            "mfmd_gate_failures",
            "Checks that a candidate did not pass since the daemon started, by veto or vote",
            ["gate"],
            registry=registry,
        )
        for result in RESULTS:
            self.runs.labels(result=result)
        for decision in DECISIONS:
            self.verdicts.labels(decision=decision)


class PublishMetrics:
    """Mirrors of what serves."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.results = Counter(
            "mfmd_publish",
            "Attempts to bring a mirror to the serving version since the daemon started, by result: ok, failed (tried "
            "again; `mfmd status` says why)",
            ["mirror", "result"],
            registry=registry,
        )
        self.version = Gauge(
            "mfmd_publish_version",
            "Version that a mirror leads its readers to; 0: none, or the mirror is not configured",
            ["mirror"],
            registry=registry,
        )
        for mirror in MIRRORS:
            self.version.labels(mirror=mirror)
            for result in ("ok", "failed"):
                self.results.labels(mirror=mirror, result=result)


class ProcessMetrics:
    """The daemon itself and its children."""

    def __init__(self, registry: CollectorRegistry, settings: Settings) -> None:
        Info("mfmd_build", "Version of mfmd and of Python", registry=registry).info(
            {"version": metadata.version("mfmd"), "python": platform.python_version()}
        )
        digest = hashlib.sha256(settings.model_dump_json().encode()).hexdigest()
        Info("mfmd_config_hash", "SHA-256 of the settings in force, secrets masked", registry=registry).info(
            {"sha256": digest}
        )
        self.started = Gauge(
            "mfmd_start_timestamp_seconds", "Unix time at which the daemon was ready (seconds)", registry=registry
        )
        self.ticks = Gauge(
            "mfmd_component_last_tick_timestamp_seconds",
            "Unix time at which a part of the daemon last ended a step (seconds); rounds tick between rounds only",
            ["component"],
            registry=registry,
        )
        self.failed_steps = Counter(
            "mfmd_component_failures",
            "Steps of a part of the daemon that failed and were tried again",
            ["component"],
            registry=registry,
        )
        for component in COMPONENTS:
            self.ticks.labels(component=component)
            self.failed_steps.labels(component=component)

    def ticked(self, component: str) -> None:
        """A step ended."""
        self.ticks.labels(component=component).set_to_current_time()

    def restarted(self, component: str) -> None:
        """A step failed and will be tried again."""
        self.failed_steps.labels(component=component).inc()


class Metrics:
    """Everything the control plane exposes on `/metrics`."""

    def __init__(self, settings: Settings) -> None:
        # Without this each counter has a second series that says only when the process began.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        self.ingest = IngestMetrics(self.registry)
        self.rounds = RoundMetrics(self.registry)
        self.publish = PublishMetrics(self.registry)
        self.process = ProcessMetrics(self.registry, settings)
        ProcessCollector(registry=self.registry)
        self._lock = threading.Lock()

    def exposition(self, accept: str) -> tuple[bytes, str]:
        """The metrics as text and their content type, in the format that `accept` (an HTTP header) asks for."""
        encode, content_type = choose_encoder(accept)
        with self._lock:  # two scrapes at once would read storage twice
            return encode(self.registry), content_type
