"""Metrics read from storage at scrape time: right after a restart and never stale."""

import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from configs.settings import Settings
from daemon.masks.report import MaskReport, read_report
from daemon.metrics import REASONS
from daemon.rounds.history import schedule_state, summaries
from daemon.rounds.schedule import due
from daemon.runtime.activity import ChildActivity
from daemon.runtime.logs import get_logger
from daemon.status.model import OBSERVED_FRAMES
from storage.buffer.catalog import Catalog
from storage.buffer.catalog_records import SKIP_REASONS
from storage.buffer.observations import Observations
from storage.errors import StorageError
from storage.layout import StateLayout
from storage.registry.registry import CheckpointRegistry
from storage.rounds.folder import RoundStore

SIZE_SECONDS = 60.0
"""The buffer's size on disk is measured at most this often (seconds)."""


class Family(NamedTuple):
    """Help text, label and kind of a metric; the exposed name of a counter ends in `_total`."""

    text: str
    label: str = ""
    kind: type[GaugeMetricFamily] | type[CounterMetricFamily] = GaugeMetricFamily


FAMILIES = {
    "mfmd_buffer_images": Family("Frames in the buffer"),
    "mfmd_buffer_holdout_images": Family("Held-out frames among them"),
    "mfmd_buffer_capacity_images": Family("Largest number of frames in the buffer"),
    "mfmd_buffer_committed_images": Family("Frames ever committed", kind=CounterMetricFamily),
    "mfmd_buffer_evicted_images": Family("Frames evicted from the buffer", kind=CounterMetricFamily),
    "mfmd_buffer_last_committed_timestamp_seconds": Family(
        "Unix time of the newest commit in the buffer; 0 when it is empty"
    ),
    "mfmd_refused_files": Family("Refused files in the drop folder, by reason", "reason"),
    "mfmd_skipped_files": Family("Skipped files in the drop folder, by reason", "reason"),
    "mfmd_buffer_leases": Family("Rounds that lease frames, which protects the frames from eviction"),
    "mfmd_disk_free_bytes": Family(
        "Free space on the disk of the state directory; below mfmd_disk_reserve_bytes the buffer does not grow, "
        "below half of it ingest pauses"
    ),
    "mfmd_disk_reserve_bytes": Family("Free space that ingest does not use"),
    "mfmd_buffer_max_bytes": Family("Quota of the frames (bytes); 0: no limit"),
    "mfmd_buffer_bytes": Family("Size of the frame buffer on disk; up to a minute old"),
    "mfmd_ref_version": Family("Version that a ref names: serving, previous; 0 when it names none", "ref"),
    "mfmd_ref_since_timestamp_seconds": Family("Unix time of the ref's last move; 0: never", "ref"),
    "mfmd_registry_versions": Family("Checkpoint versions on disk"),
    "mfmd_round_last_number": Family("Number of the last ended round; 0: none"),
    "mfmd_round_last_attempt_timestamp_seconds": Family(
        "Unix time of the end of the last round, with any result; 0: none"
    ),
    "mfmd_round_last_success_timestamp_seconds": Family(
        "Unix time of the last verdict on a candidate; 0: none among the five newest rounds"
    ),
    "mfmd_gate_score": Family(
        "Value of each check of the last verdict; for votes the candidate's advantage over the incumbent",
        "gate",
    ),
    "mfmd_gate_limit": Family(
        "Limit of each check of the last verdict; for votes the bootstrap's lower bound, which must exceed 0",
        "gate",
    ),
    "mfmd_gate_passed": Family("1 for each check of the last verdict that passed", "gate"),
    "mfmd_schedule_frames_missing": Family("New frames still missing until the next round starts"),
    "mfmd_round_consecutive_failures": Family("Consecutive failed rounds, up to the last"),
    "mfmd_observed_frames": Family("Number of newest frames in the averages"),
    "mfmd_prediction_entropy": Family("Mean softmax entropy over these frames (nats)"),
    "mfmd_prediction_confidence": Family("Mean largest softmax probability over these frames (0-1)"),
    "mfmd_observed_last_timestamp_seconds": Family("Unix time of the newest observation"),
    "mfmd_prediction_class_ratio": Family(
        f"Mean share of pixels per predicted class over the {OBSERVED_FRAMES} newest observed frames (0-1)", "class"
    ),
    "mfmd_component_up": Family(
        "1 while the child process does its work; 0 from its end or hang until it is ready again", "component"
    ),
    "mfmd_component_restarts": Family("Restarts of the child process", "component", CounterMetricFamily),
    "mfmd_masks": Family(
        "Images of the drop folder that needed a mask, by result: written, refused (no usable image), "
        "failed (computing or writing the mask failed)",
        "result",
        CounterMetricFamily,
    ),
    "mfmd_masks_pending": Family("Images that wait for their mask"),
    "mfmd_masks_active": Family("1 while the masks process writes; 0: off, stopped, or another process writes"),
    "mfmd_masks_folder_present": Family("1 while the masks process can list the drop folder"),
    "mfmd_masks_last_written_timestamp_seconds": Family(
        "Unix time of the newest mask (seconds); 0: none since the masks process started"
    ),
    "mfmd_state_readable": Family(
        "1 for each part of the state directory that could be read for this scrape; the metrics of an unreadable part "
        "are absent",
        "part",
    ),
}
"""Every metric of this file by name."""

Values = tuple[str, float | Mapping[str, float]]
"""The name of a metric with its value, or with a value for each value of its label."""

log = get_logger(__name__)


class StateCollector(Collector):
    """Collects from the state directory. A part that cannot be read is left out and logged once; the others stay."""

    def __init__(self, settings: Settings, catalog: Catalog, children: Callable[[], list[ChildActivity]]) -> None:
        self.settings = settings
        """The settings in force; a reload replaces them."""
        self._catalog, self._children = catalog, children
        self._layout = StateLayout(settings.state)
        self._registry = CheckpointRegistry(self._layout.checkpoints)
        self._rounds = RoundStore(self._layout.rounds)
        self._size = (0.0, 0)
        self._unreadable: dict[str, str] = {}
        self._parts: dict[str, Callable[[], Iterator[Values]]] = {
            "buffer": self._buffer,
            "disk": self._disk,
            "refs": self._refs,
            "rounds": self._last_round,
            "schedule": self._schedule,
            "observations": self._observed,
            "masks": self._masks,
            "children": self._kids,
        }

    def describe(self) -> Iterable[Metric]:
        """Return nothing, because registering must not read the state directory."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Yield all families."""
        readable = {}
        for part, read in self._parts.items():
            found = self._read(part, read)
            readable[part] = found is not None
            yield from (_family(name, values) for name, values in found or ())
        yield _family("mfmd_state_readable", readable)

    def _read(self, part: str, read: Callable[[], Iterator[Values]]) -> list[Values] | None:
        """Return the values of a part; None if it cannot be read. Log the reason when it changes."""
        try:
            found = list(read())
        except (OSError, StorageError) as error:
            if self._unreadable.get(part) != str(error):
                log.warning("metrics_not_collected", part=part, error=str(error))
            self._unreadable[part] = str(error)
            return None
        self._unreadable.pop(part, None)
        return found

    def _buffer(self) -> Iterator[Values]:
        counts = self._catalog.counts()
        yield "mfmd_buffer_images", counts.frames
        yield "mfmd_buffer_holdout_images", counts.holdout
        yield "mfmd_buffer_capacity_images", self.settings.buffer.capacity_frames
        yield "mfmd_buffer_committed_images", counts.committed_total
        yield "mfmd_buffer_evicted_images", counts.evicted_total
        yield "mfmd_buffer_last_committed_timestamp_seconds", counts.last_committed_at or 0.0
        yield "mfmd_refused_files", dict.fromkeys(REASONS, 0) | counts.refused
        yield "mfmd_skipped_files", dict.fromkeys(SKIP_REASONS, 0) | counts.skipped
        yield "mfmd_buffer_leases", len(self._catalog.leases())

    def _disk(self) -> Iterator[Values]:
        yield "mfmd_disk_free_bytes", shutil.disk_usage(self._layout.root).free
        yield "mfmd_disk_reserve_bytes", self.settings.buffer.reserve_bytes
        yield "mfmd_buffer_max_bytes", self.settings.buffer.max_bytes
        yield "mfmd_buffer_bytes", self._buffer_bytes()

    def _refs(self) -> Iterator[Values]:
        refs = {"serving": self._registry.serving(), "previous": self._registry.ref("previous")}
        yield "mfmd_ref_version", {name: ref.version if ref else 0 for name, ref in refs.items()}
        yield "mfmd_ref_since_timestamp_seconds", {name: ref.since if ref else 0 for name, ref in refs.items()}
        yield "mfmd_registry_versions", len(self._registry.versions())

    def _last_round(self) -> Iterator[Values]:
        rounds = summaries(self._rounds, 5, alive=True)
        recent = [item for item in rounds if item.result not in ("running", "suspended")]
        last = recent[0] if recent else None
        good = next((item for item in recent if item.result in ("promoted", "rejected", "inconclusive")), None)
        yield "mfmd_round_last_number", last.round if last else 0
        yield "mfmd_round_last_attempt_timestamp_seconds", (last.ended or 0.0) if last else 0.0
        yield "mfmd_round_last_success_timestamp_seconds", (good.ended or 0.0) if good else 0.0
        verdict = self._rounds.folder(last.round).verdict() if last else None
        checks = verdict.checks if verdict else []
        yield "mfmd_gate_score", {check.name: check.value for check in checks if check.value is not None}
        yield "mfmd_gate_limit", {check.name: check.limit for check in checks if check.limit is not None}
        yield "mfmd_gate_passed", {check.name: check.passed for check in checks}

    def _schedule(self) -> Iterator[Values]:
        state = schedule_state(self._catalog, self._rounds, self._registry)
        yield "mfmd_schedule_frames_missing", due(time.time(), state, self.settings)[1].frames_missing
        yield "mfmd_round_consecutive_failures", state.failures

    def _observed(self) -> Iterator[Values]:
        means = None
        if self._layout.observations.exists():
            with Observations.open(self._layout.observations, writable=False) as observations:
                means = observations.means(OBSERVED_FRAMES)
        yield "mfmd_observed_frames", means.frames if means else 0
        names, area = [entry.name for entry in self.settings.classes], means.area if means else []
        yield "mfmd_prediction_class_ratio", dict(zip(names, area, strict=True)) if len(names) == len(area) else {}
        if means is not None:
            yield "mfmd_prediction_entropy", means.entropy
            yield "mfmd_prediction_confidence", means.confidence
            yield "mfmd_observed_last_timestamp_seconds", means.at

    def _kids(self) -> Iterator[Values]:
        children = self._children()
        yield "mfmd_component_up", {child.name: not child.problem for child in children}
        yield "mfmd_component_restarts", {child.name: child.restarts for child in children}

    def _masks(self) -> Iterator[Values]:
        report = read_report(self._layout.run_file("masks")) or MaskReport()
        runs = any(child.name == "masks" and child.running for child in self._children())
        yield "mfmd_masks", {"written": report.written, "refused": report.refused, "failed": report.failed}
        yield "mfmd_masks_pending", report.pending
        yield "mfmd_masks_active", report.active and runs
        yield "mfmd_masks_folder_present", report.folder_present and runs
        yield "mfmd_masks_last_written_timestamp_seconds", report.last_written

    def _buffer_bytes(self) -> int:
        measured, size = self._size
        now = time.monotonic()
        if not measured or now - measured > SIZE_SECONDS:
            size = _tree_bytes(str(self._layout.buffer))
            self._size = (now, size)
        return size


def _family(name: str, values: float | Mapping[str, float]) -> Metric:
    text, label, kind = FAMILIES[name]
    if not isinstance(values, Mapping):
        return kind(name, text, value=values)
    family = kind(name, text, labels=[label])
    for key, value in values.items():
        family.add_metric([key], value)
    return family


def _tree_bytes(folder: str) -> int:
    """Return the disk space of all files below `folder`; files removed meanwhile count as 0."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(f"{parent}/{name}").st_blocks * 512
            except FileNotFoundError:
                continue
    return total
