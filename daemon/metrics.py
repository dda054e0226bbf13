"""Prometheus metrics of the control plane: what its threads count while they work.

`control/state_metrics.py` reads what storage knows. Every series whose labels are known starts at 0, because a rate is
then right from the first event on. Times are timestamps, never ages.
"""

import threading
from typing import get_args

from prometheus_client import CollectorRegistry

from configs.settings import Settings
from daemon.net.plane_metrics import PlaneMetrics
from daemon.runtime.activity import MODES, FileActivity
from daemon.runtime.metric_table import MetricTable, counter, expose, gauge, histogram
from storage.buffer.catalog_records import SKIP_REASONS
from storage.rounds.records import Progress
from storage.rounds.verdict import CHECKS

COMPONENTS = (
    "ingest", "folders", "rounds", "gate", "supervisor", "publish", "notify", "activity", "self_check",
)  # fmt: skip
MIRRORS = ("triton", "huggingface")
OUTCOMES = ("stored", "not_kept", "duplicate", "skipped", "rejected")
REASONS = (
    "empty", "too_many_bytes", "too_many_pixels", "aspect", "not_an_image", "needs_extra", "too_costly",
    "decoder_crashed", "truncated", "unreadable", "outside_folder", "camera_raw", "thumbnail_only", "unsupported_bits",
    "unsupported_colors", "unsupported_compression", "unsupported_layout", "unsupported_samples", "unexpected",
)  # fmt: skip
RESULTS = ("promoted", "rejected", "inconclusive", "suggested", "failed", "stopped")
DECISIONS = ("accepted", "rejected", "inconclusive")
PHASES = get_args(Progress.model_fields["phase"].annotation)
LATENCY_SECONDS = (0.5, 1.0, 2.0, 3.0, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0, 7200.0)
COMMIT_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
ROUND_SECONDS = (10, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 14400, 21600)


class IngestMetrics(MetricTable):
    """Drop folder and ingest."""

    events = counter("mfmd_watcher_events", "File events received from the kernel; hints, not a count of files")
    overflows = counter(
        "mfmd_watcher_overflows", "Overflows of the event queue, which lose events; a rescan follows each"
    )
    restarts = counter(
        "mfmd_watcher_restarts", "Restarts of the event observer, because it ended or the folder was replaced"
    )
    rescans = counter("mfmd_watcher_rescans", "Rescans of the drop folder")
    rescan_found = counter("mfmd_watcher_rescan_found", "Files that a rescan found without an event")
    rescan_seconds = gauge("mfmd_watcher_rescan_seconds", "Duration of the last rescan (seconds)")
    folder_present = gauge(
        "mfmd_watcher_folder_present",
        "1 while the drop folder exists and can be listed, 0 while the daemon waits for it",
    )
    mode = gauge(
        "mfmd_watcher_mode_info",
        "1 for the mode in force and its reason: events (kernel events and rescan) or polling (rescan only)",
        mode=(),
        reason=(),
    )
    state = gauge(
        "mfmd_watcher_state_info",
        "1 for the state of the drop folder: starting, watching, missing, unmounted (its marker is absent), "
        "unreadable, overlapping, stopped",
        state=(),
    )
    pending = gauge("mfmd_ingest_pending_files", "Files in the drop folder that are not processed yet")
    oldest_pending = gauge(
        "mfmd_ingest_oldest_pending_timestamp_seconds",
        "Modification time of the oldest pending file that was examined (Unix, seconds); 0 when none waits",
    )
    files = counter(
        "mfmd_ingest_files",
        "Files processed since the daemon started, by outcome: stored as a frame, not_kept (committed and evicted at "
        "once by the reservoir), duplicate of stored content, skipped by admission, rejected with a reason",
        outcome=OUTCOMES,
    )
    rejected = counter(
        "mfmd_ingest_rejected",
        "Files refused since the daemon started, by reason; `mfmd status` and the catalog name them",
        reason=REASONS,
    )
    skipped = counter(
        "mfmd_ingest_skipped", "Files that admission skipped since the daemon started, by reason", reason=SKIP_REASONS
    )
    bytes = counter("mfmd_ingest_bytes", "Bytes of image files that were stored as frames")
    retries = counter("mfmd_ingest_retries", "Retries after a temporary error (I/O error, file changed)")
    latency = histogram(
        "mfmd_ingest_latency_seconds",
        "Time from a file's last modification to its durable commit (seconds); includes the stability delay",
        LATENCY_SECONDS,
    )
    commit_seconds = histogram(
        "mfmd_buffer_commit_seconds",
        "Time to make one group of frames durable: shards, fsync, one SQLite transaction (seconds)",
        COMMIT_SECONDS,
    )
    paused = gauge(
        "mfmd_ingest_paused",
        "1 while ingest waits for disk space, for a free slot, or for a catalog that can be used; files stay in the "
        "folder meanwhile",
    )
    last_stored = gauge(
        "mfmd_ingest_last_stored_timestamp_seconds",
        "Unix time of the newest commit since the daemon started; 0 before the first",
    )

    def __init__(self, registry: CollectorRegistry) -> None:
        super().__init__(registry)
        for mode, reason in MODES:
            self.mode.labels(mode, reason)


class RoundMetrics(MetricTable):
    """Rounds and the gate."""

    runs = counter(
        "mfmd_round_runs",
        "Rounds ended since the daemon started, by result: promoted, rejected, inconclusive (the incumbent "
        "stays), suggested (waits for a person), failed (crash, time-out, non-finite loss), "
        "stopped (the daemon was stopped)",
        result=RESULTS,
    )
    seconds = histogram(
        "mfmd_round_duration_seconds", "Wall time of a round from its start to its scores (seconds)", ROUND_SECONDS
    )
    in_progress = gauge("mfmd_round_in_progress", "1 while a round runs")
    last_progress = gauge(
        "mfmd_round_last_progress_timestamp_seconds",
        "Unix time of the last progress of the running or last round, or of its start; 0 before the first",
    )
    phase = gauge(
        "mfmd_round_phase_info",
        "1 for the phase of the round that runs: " + ", ".join(PHASES) + "; 0 for all while none runs",
        phase=PHASES,
    )
    step = gauge("mfmd_round_step", "Steps done by the running or last round")
    step_target = gauge("mfmd_round_step_target", "Steps that the running or last round is to do")
    loss = gauge("mfmd_round_loss", "Loss of the running or last round, by part: source, mix, mfm", part=())
    kept_ratio = gauge(
        "mfmd_round_pseudo_label_kept_ratio",
        "Share of pseudo-label pixels above the confidence threshold in the running or last round (0-1)",
    )
    images_per_second = gauge(
        "mfmd_round_images_per_second", "Training rate of the running or last round (source and target images a second)"
    )
    memory = gauge(
        "mfmd_round_memory_bytes",
        "Memory of the running or last round, of its first process: resident (as of its last progress), device (most "
        "that it reserved on the GPU; 0 without one)",
        kind=("resident", "device"),
    )
    shadow_images = gauge(
        "mfmd_round_shadow_images",
        "Live images that the candidate of the running or last round was compared on in the shadow, all planes",
    )
    shadow_agreement = gauge(
        "mfmd_round_shadow_agreement", "Share of their pixels with the label that was served (0-1); 0 before the first"
    )
    verdicts = counter(
        "mfmd_gate_verdicts",
        "Verdicts of the gate since the daemon started, by decision, including failed and stopped rounds",
        decision=DECISIONS,
    )
    failures = counter(
        "mfmd_gate_failures",
        "Checks that a candidate did not pass since the daemon started, by veto or vote",
        gate=CHECKS,
    )

    def show_phase(self, now: str | None) -> None:
        """Expose the phase of the round that runs."""
        for phase in PHASES:
            self.phase.labels(phase).set(phase == now)


class PublishMetrics(MetricTable):
    """Mirrors of what serves."""

    results = counter(
        "mfmd_publish",
        "Updates of a mirror to the serving version since the daemon started, by result: ok, failed (retried; "
        "`mfmd status` says why)",
        mirror=MIRRORS,
        result=("ok", "failed"),
    )
    version = gauge(
        "mfmd_publish_version", "Version that a mirror offers; 0: none, or the mirror is not configured", mirror=MIRRORS
    )


class NotifyMetrics(MetricTable):
    """Messages to webhooks."""

    results = counter(
        "mfmd_notifications",
        "Attempts to send a message to a webhook since the daemon started, by result: ok, failed (sent again)",
        result=("ok", "failed"),
    )


class ProcessMetrics(PlaneMetrics):
    """The daemon itself, its children and its settings."""

    started = gauge("mfmd_start_timestamp_seconds", "Unix time at which the daemon was ready (seconds)")
    ticks = gauge(
        "mfmd_component_last_tick_timestamp_seconds",
        "Unix time of the last finished step of a part of the daemon (seconds); rounds tick between rounds only, "
        "self_check once an hour",
        component=COMPONENTS,
    )
    failed_steps = counter(
        "mfmd_component_failures", "Failed steps of a part of the daemon; each is retried", component=COMPONENTS
    )

    self_checked = gauge(
        "mfmd_self_check_last_timestamp_seconds",
        "Unix time of the last self-check, which runs once an hour; 0: none yet",
    )
    self_check_errors = gauge("mfmd_self_check_errors", "Errors in the state directory that the last self-check found")
    settings_valid = gauge(
        "mfmd_config_file_valid", "1 while the configuration file is valid; the settings in force stay either way"
    )
    settings_changed = gauge(
        "mfmd_config_changed_settings",
        "Settings whose value in the configuration file is not the one in force, by what applies it: reload, restart",
        needs=("reload", "restart"),
    )
    reloads = counter(
        "mfmd_config_reloads",
        "Reloads of the settings since the daemon started, by result: ok, refused (nothing changed)",
        result=("ok", "refused"),
    )

    def __init__(self, registry: CollectorRegistry, settings: Settings) -> None:
        super().__init__(registry, settings)
        self.settings_valid.set(1)

    def compared(self, file: FileActivity) -> None:
        """Expose how the configuration file differs from the settings in force."""
        self.settings_valid.set(not file.problem)
        self.settings_changed.labels(needs="reload").set(len(file.reload))
        self.settings_changed.labels(needs="restart").set(len(file.restart))

    def ticked(self, component: str) -> None:
        """Count a finished step."""
        self.ticks.labels(component=component).set_to_current_time()

    def restarted(self, component: str) -> None:
        """Count a failed step that is tried again."""
        self.failed_steps.labels(component=component).inc()


class Metrics:
    """All metrics that the control plane exposes on `/metrics`."""

    def __init__(self, settings: Settings) -> None:
        self.registry = CollectorRegistry()
        self.ingest = IngestMetrics(self.registry)
        self.rounds = RoundMetrics(self.registry)
        self.publish = PublishMetrics(self.registry)
        self.notify = NotifyMetrics(self.registry)
        self.process = ProcessMetrics(self.registry, settings)
        self._lock = threading.Lock()

    def exposition(self, accept: str) -> tuple[bytes, str]:
        """Return the metrics as text and their content type, in the format that `accept` (an HTTP header) names."""
        with self._lock:  # two scrapes at once would read storage twice
            return expose(self.registry, accept)
