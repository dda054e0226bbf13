"""Metrics that storage knows: read when Prometheus asks, so they are right after a restart and never stale."""

import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from configs.settings import Settings
from daemon.rounds.history import schedule_state, summaries
from daemon.rounds.schedule import due
from daemon.runtime.activity import ChildActivity
from daemon.runtime.logs import get_logger
from storage.buffer.catalog import Catalog
from storage.buffer.observations import Observations
from storage.errors import StorageError
from storage.layout import StateLayout
from storage.registry.registry import CheckpointRegistry
from storage.rounds.folder import RoundStore

OBSERVED_FRAMES = 200
"""Newest frames over which predictions are averaged."""
SIZE_SECONDS = 60.0
"""The buffer's size on disk is measured at most this often (seconds)."""

log = get_logger(__name__)


class StateCollector(Collector):
    """Collects from the state directory. A part that cannot be read is left out and logged; the others stay."""

    def __init__(self, settings: Settings, catalog: Catalog, children: Callable[[], list[ChildActivity]]) -> None:
        self._settings, self._catalog, self._children = settings, catalog, children
        self._layout = StateLayout(settings.state)
        self._registry = CheckpointRegistry(self._layout.checkpoints)
        self._rounds = RoundStore(self._layout.rounds)
        self._size = (0.0, 0)

    def describe(self) -> Iterable[Metric]:
        """Nothing in advance: registering must not read the state directory."""
        return []

    def collect(self) -> Iterator[Metric]:
        """All families."""
        for part in (
            self._buffer,
            self._disk,
            self._refs,
            self._last_round,
            self._schedule,
            self._observed,
            self._kids,
        ):
            try:
                yield from part()
            except (OSError, StorageError) as error:
                log.warning("metrics_not_collected", part=part.__name__.lstrip("_"), error=str(error))

    def _buffer(self) -> Iterator[Metric]:
        counts = self._catalog.counts()
        yield _gauge("mfmd_buffer_images", "Frames in the buffer", counts.frames)
        yield _gauge("mfmd_buffer_holdout_images", "Held-out frames among them", counts.holdout)
        yield _gauge(
            "mfmd_buffer_capacity_images",
            "Frames that the buffer holds before some leave",
            self._settings.buffer.capacity_frames,
        )
        yield _counter("mfmd_buffer_committed_images", "Frames ever committed", counts.committed_total)
        yield _counter("mfmd_buffer_evicted_images", "Frames that left the buffer to make room", counts.evicted_total)
        yield _gauge(
            "mfmd_buffer_last_committed_timestamp_seconds",
            "Unix time of the newest commit in the buffer; 0 when it is empty: how old the data is",
            counts.last_committed_at or 0.0,
        )
        refused = GaugeMetricFamily(
            "mfmd_refused_files", "Files of the drop folder that are refused as they are, by reason", labels=["reason"]
        )
        for reason, count in counts.refused.items():
            refused.add_metric([reason], count)
        yield refused
        skipped = GaugeMetricFamily(
            "mfmd_skipped_files", "Files of the drop folder that admission left out, by reason", labels=["reason"]
        )
        for reason, count in counts.skipped.items():
            skipped.add_metric([reason], count)
        yield skipped
        leases = len(self._catalog.leases())
        yield _gauge("mfmd_buffer_leases", "Rounds that hold frames and so keep them from leaving", leases)

    def _disk(self) -> Iterator[Metric]:
        yield _gauge(
            "mfmd_disk_free_bytes",
            "Free space on the disk of the state directory; below mfmd_disk_reserve_bytes the buffer does not grow, "
            "below half of it ingest pauses",
            shutil.disk_usage(self._layout.root).free,
        )
        reserve = self._settings.buffer.reserve_bytes
        yield _gauge("mfmd_disk_reserve_bytes", "Free space that ingest leaves alone", reserve)
        yield _gauge(
            "mfmd_buffer_max_bytes", "Most bytes that frames may take; 0: no limit", self._settings.buffer.max_bytes
        )
        yield _gauge("mfmd_buffer_bytes", "Size of the frame buffer on disk; up to a minute old", self._buffer_bytes())

    def _refs(self) -> Iterator[Metric]:
        version = GaugeMetricFamily(
            "mfmd_ref_version", "Version that a ref names: serving, previous; 0 when it names none", labels=["ref"]
        )
        since = GaugeMetricFamily(
            "mfmd_ref_since_timestamp_seconds",
            "Unix time at which the ref moved there; 0 when it never did",
            labels=["ref"],
        )
        for name in ("serving", "previous"):
            ref = self._registry.ref("serving" if name == "serving" else "previous")
            version.add_metric([name], ref.version if ref else 0)
            since.add_metric([name], ref.since if ref else 0)
        yield version
        yield since
        yield _gauge("mfmd_registry_versions", "Checkpoint versions on disk", len(self._registry.versions()))

    def _last_round(self) -> Iterator[Metric]:
        recent = [item for item in summaries(self._rounds, 5, alive=True) if item.result != "running"]
        last = recent[0] if recent else None
        good = next((item for item in recent if item.result in ("promoted", "rejected", "inconclusive")), None)
        yield _gauge(
            "mfmd_round_last_number", "Number of the last round that ended; 0: none", last.round if last else 0
        )
        yield _gauge(
            "mfmd_round_last_attempt_timestamp_seconds",
            "Unix time at which the last round ended, whatever its result; 0: none",
            (last.ended or 0.0) if last else 0.0,
        )
        yield _gauge(
            "mfmd_round_last_success_timestamp_seconds",
            "Unix time of the last verdict on a candidate, whatever it was; 0: none among the five newest rounds",
            (good.ended or 0.0) if good else 0.0,
        )
        yield from self._gate(last.round if last else None)

    def _gate(self, number: int | None) -> Iterator[Metric]:
        score = GaugeMetricFamily(
            "mfmd_gate_score",
            "Number that each check of the last verdict judged; for votes the candidate's advantage over the incumbent",
            labels=["gate"],
        )
        limit = GaugeMetricFamily(
            "mfmd_gate_limit",
            "Bound that each check of the last verdict was judged against; for votes the bootstrap's lower bound, "
            "which must exceed 0",
            labels=["gate"],
        )
        passed = GaugeMetricFamily(
            "mfmd_gate_passed", "1 for each check of the last verdict that passed", labels=["gate"]
        )
        verdict = self._rounds.folder(number).verdict() if number is not None else None
        for check in verdict.checks if verdict else []:
            passed.add_metric([check.name], check.passed)
            if check.value is not None:
                score.add_metric([check.name], check.value)
            if check.limit is not None:
                limit.add_metric([check.name], check.limit)
        yield from (score, limit, passed)

    def _schedule(self) -> Iterator[Metric]:
        state = schedule_state(self._catalog, self._rounds, self._registry)
        missing = due(time.time(), state, self._settings).frames_missing
        yield _gauge("mfmd_schedule_frames_missing", "New frames still missing until the next round starts", missing)
        yield _gauge("mfmd_round_consecutive_failures", "Rounds that failed in a row, up to the last", state.failures)

    def _observed(self) -> Iterator[Metric]:
        means = None
        if self._layout.observations.exists():
            with Observations.open(self._layout.observations, writable=False) as observations:
                means = observations.means(OBSERVED_FRAMES)
        yield _gauge(
            "mfmd_observed_frames", "Newest frames that predictions are averaged over", means.frames if means else 0
        )
        ratio = GaugeMetricFamily(
            "mfmd_prediction_class_ratio",
            f"Mean share of pixels per predicted class over the {OBSERVED_FRAMES} newest observed frames (0-1)",
            labels=["class"],
        )
        if means is not None:
            yield _gauge("mfmd_prediction_entropy", "Mean softmax entropy over these frames (nats)", means.entropy)
            confidence = "Mean largest softmax probability over these frames (0-1)"
            yield _gauge("mfmd_prediction_confidence", confidence, means.confidence)
            yield _gauge("mfmd_observed_last_timestamp_seconds", "Unix time of the newest observation", means.at)
            if len(means.area) == len(self._settings.classes):
                for entry, share in zip(self._settings.classes, means.area, strict=True):
                    ratio.add_metric([entry.name], share)
        yield ratio

    def _kids(self) -> Iterator[Metric]:
        up = GaugeMetricFamily("mfmd_component_up", "1 while the child process runs", labels=["component"])
        restarts = CounterMetricFamily(
            "mfmd_component_restarts", "Starts of the child process after its first", labels=["component"]
        )
        for child in self._children():
            up.add_metric([child.name], child.running)
            restarts.add_metric([child.name], child.restarts)
        yield from (up, restarts)

    def _buffer_bytes(self) -> int:
        measured, size = self._size
        now = time.monotonic()
        if not measured or now - measured > SIZE_SECONDS:
            size = _tree_bytes(str(self._layout.buffer))
            self._size = (now, size)
        return size


def _tree_bytes(folder: str) -> int:
    """Disk space of all files below `folder`; what vanishes meanwhile counts nothing."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(f"{parent}/{name}").st_blocks * 512
            except FileNotFoundError:
                continue
    return total


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=value)


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(name, text, value=value)
