"""Metrics read from storage at scrape time: right after a restart and never stale."""

import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import get_args

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from configs.round import LEFT_OUT
from configs.settings import Settings
from daemon.gate.decide import GATE
from daemon.masks.report import MaskReport, read_report
from daemon.metrics import REASONS
from daemon.net.certificates import first_end
from daemon.net.secret_files import SECRETS, exposure, secret_files
from daemon.rounds.history import JUDGED, schedule_state, summaries
from daemon.rounds.schedule import Held, due
from daemon.runtime.activity import ChildActivity
from daemon.runtime.logs import get_logger
from daemon.status.conditions import describe_conditions
from daemon.status.model import OBSERVED_FRAMES
from storage.buffer.catalog import Catalog
from storage.buffer.catalog_records import SKIP_REASONS
from storage.buffer.observations import Observations
from storage.durable.record import read_record
from storage.errors import StorageError
from storage.gate.conditions import ConditionStore
from storage.gate.drift import Drift, DriftState, drift_state
from storage.gate.pause import read_pause
from storage.gate.probation import Probation
from storage.gate.recall import Recall
from storage.layout import StateLayout
from storage.registry.history import MOVES
from storage.registry.manifest import HistoryEvent
from storage.registry.registry import CheckpointRegistry
from storage.rounds.folder import RoundStore
from storage.rounds.verdict import Check

CAUSES = ("round", "recall", "probation", "operator")
SIZE_SECONDS = 60.0
"""The buffer's size on disk is measured at most this often (seconds)."""


log = get_logger(__name__)


class StateCollector(Collector):
    """Collects from the state directory. A part that cannot be read keeps its last values, and is logged once."""

    def __init__(self, settings: Settings, catalog: Catalog, children: Callable[[], list[ChildActivity]]) -> None:
        self.settings = settings
        """The settings in force; a reload replaces them."""
        self._catalog, self._children = catalog, children
        self._layout = StateLayout(settings.state)
        self._registry = CheckpointRegistry(self._layout.checkpoints)
        self._rounds = RoundStore(self._layout.rounds)
        self._size = (0.0, 0)
        self._unreadable: dict[str, str] = {}
        self._found: dict[str, list[Metric]] = {}
        self._failed: Counter[str] = Counter()
        self._parts: dict[str, Callable[[], Iterator[Metric]]] = {
            "buffer": self._buffer,
            "disk": self._disk,
            "refs": self._refs,
            "registry": self._moves,
            "rounds": self._last_round,
            "probation": self._probation,
            "pause": self._pause,
            "recall": self._recall,
            "drift": self._drift,
            "conditions": self._conditions,
            "schedule": self._schedule,
            "observations": self._observed,
            "masks": self._masks,
            "children": self._kids,
            "secrets": self._secrets,
        }

    def describe(self) -> Iterable[Metric]:
        """Return nothing, because registering must not read the state directory."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Yield all families."""
        readable = {}
        for part, read in self._parts.items():
            readable[part] = self._read(part, read)
            self._failed[part] += not readable[part]
            yield from self._found.get(part, ())
        text = (
            "1 for each part of the state directory that could be read for this scrape; the metrics of an unreadable "
            "part keep the values of the last scrape that could"
        )
        yield _metric("mfmd_state_readable", text, readable, "part")
        text = "Scrapes since the daemon started that could not read a part of the state directory"
        yield _metric("mfmd_state_read_failures_total", text, self._failed, "part")

    def _read(self, part: str, read: Callable[[], Iterator[Metric]]) -> bool:
        """Read the metrics of a part; return whether it can be read. Log the reason when it changes."""
        try:
            self._found[part] = list(read())
        except (OSError, StorageError) as error:
            if self._unreadable.get(part) != str(error):
                log.warning("metrics_not_collected", part=part, error=str(error))
            self._unreadable[part] = str(error)
            return False
        self._unreadable.pop(part, None)
        return True

    def _buffer(self) -> Iterator[Metric]:
        counts, capacity = self._catalog.counts(), self.settings.buffer.capacity_frames
        refused, skipped = dict.fromkeys(REASONS, 0) | counts.refused, dict.fromkeys(SKIP_REASONS, 0) | counts.skipped
        yield _metric("mfmd_buffer_images", "Frames in the buffer", counts.frames)
        yield _metric("mfmd_buffer_holdout_images", "Held-out frames among them", counts.holdout)
        yield _metric("mfmd_buffer_capacity_images", "Largest number of frames in the buffer", capacity)
        yield _metric("mfmd_buffer_committed_images_total", "Frames ever committed", counts.committed_total)
        yield _metric("mfmd_buffer_evicted_images_total", "Frames evicted from the buffer", counts.evicted_total)
        text = "Unix time of the newest commit in the buffer; 0 when it is empty"
        yield _metric("mfmd_buffer_last_committed_timestamp_seconds", text, counts.last_committed_at or 0.0)
        yield _metric("mfmd_refused_files", "Refused files in the drop folder, by reason", refused, "reason")
        yield _metric("mfmd_skipped_files", "Skipped files in the drop folder, by reason", skipped, "reason")
        text = "Rounds that lease frames, which protects the frames from eviction"
        yield _metric("mfmd_buffer_leases", text, len(self._catalog.leases()))

    def _disk(self) -> Iterator[Metric]:
        text = (
            "Free space on the disk of the state directory; below mfmd_disk_reserve_bytes the buffer does not grow, "
            "below half of it ingest pauses"
        )
        yield _metric("mfmd_disk_free_bytes", text, shutil.disk_usage(self._layout.root).free)
        buffer = self.settings.buffer
        yield _metric("mfmd_disk_reserve_bytes", "Free space that ingest does not use", buffer.reserve_bytes)
        yield _metric("mfmd_buffer_max_bytes", "Quota of the frames (bytes); 0: no limit", buffer.max_bytes)
        text = "Size of the frame buffer on disk; up to a minute old"
        yield _metric("mfmd_buffer_bytes", text, self._buffer_bytes())

    def _refs(self) -> Iterator[Metric]:
        refs = {"serving": self._registry.serving(), "previous": self._registry.ref("previous")}
        versions = {name: ref.version if ref else 0 for name, ref in refs.items()}
        since = {name: ref.since if ref else 0 for name, ref in refs.items()}
        text = "Version that a ref names: serving, previous; 0 when it names none"
        yield _metric("mfmd_ref_version", text, versions, "ref")
        yield _metric("mfmd_ref_since_timestamp_seconds", "Unix time of the ref's last move; 0: never", since, "ref")

    def _moves(self) -> Iterator[Metric]:
        yield _metric("mfmd_registry_versions", "Checkpoint versions on disk", len(self._registry.versions()))
        moves = Counter(dict.fromkeys(CAUSES, 0))
        moves.update(cause_of(event) for event in self._registry.history() if event.event in MOVES)
        text = (
            "Moves of the serving ref in the history, by cause: round (a promotion by the gate), recall, probation (a "
            "rollback by the gate), operator (everything else)"
        )
        yield _metric("mfmd_serving_moves_total", text, moves, "cause")

    def _last_round(self) -> Iterator[Metric]:
        rounds = summaries(self._rounds, 5, alive=True)
        recent = [item for item in rounds if item.result not in ("running", "suspended")]
        last = recent[0] if recent else None
        good = next((item for item in recent if item.result in JUDGED), None)
        yield _metric("mfmd_round_last_number", "Number of the last ended round; 0: none", last.round if last else 0)
        text = "Unix time of the end of the last round, with any result; 0: none"
        yield _metric("mfmd_round_last_attempt_timestamp_seconds", text, (last.ended or 0.0) if last else 0.0)
        text = "Unix time of the last verdict on a candidate; 0: none among the five newest rounds"
        yield _metric("mfmd_round_last_success_timestamp_seconds", text, (good.ended or 0.0) if good else 0.0)
        verdict = self._rounds.folder(last.round).verdict() if last else None
        yield from _checks(verdict.checks if verdict else [])
        out = dict.fromkeys(LEFT_OUT, 0) | (last.left_out if last else {})
        text = "Frames that the last ended round left out, by reason"
        yield _metric("mfmd_round_left_out_images", text, out, "reason")

    def _conditions(self) -> Iterator[Metric]:
        known = describe_conditions(ConditionStore(self._layout.conditions).read())
        items = {str(item.number): item for item in known.conditions}
        yield _metric("mfmd_conditions_known", "Known conditions of the stream", len(items))
        now = GaugeMetricFamily(
            "mfmd_condition_current_info",
            "1 for the condition of the newest frames of all cameras; absent while they are of no known one",
            labels=["condition", "name"],
        )
        for number, item in items.items():
            if item.current:
                now.add_metric([number, item.name], 1)
        yield now
        text = "Condition of the newest frames of each camera (source label); 0: of no known one"
        yield _metric("mfmd_camera_condition", text, {key: at or 0 for key, at in known.cameras.items()}, "camera")
        text = "Observed frames of the buffer that are of the condition"
        yield _metric("mfmd_condition_frames", text, {key: item.frames for key, item in items.items()}, "condition")
        text = "Held-out frames that eviction does not take"
        golden = {key: item.golden for key, item in items.items()}
        yield _metric("mfmd_condition_golden_frames", text, golden, "condition")
        text = "Version that is best in the condition; 0: none"
        best = {key: item.best or 0 for key, item in items.items()}
        yield _metric("mfmd_condition_best_version", text, best, "condition")

    def _probation(self) -> Iterator[Metric]:
        record = read_record(self._layout.probation, Probation)
        watching = record is not None and record.stage == "watching"
        yield _metric("mfmd_probation_active", "1 while a promoted version is on probation", watching)
        frames = len(record.worse) if record else 0
        yield _metric("mfmd_probation_frames", "Fresh frames of the running or last probation", frames)
        text = "Frames of it on which the promoted version looks worse than the one before"
        yield _metric("mfmd_probation_worse_frames", text, sum(record.worse) if record else 0)
        seconds = self.settings.probation.advanced.cooldown_seconds
        text = "Time left of the cool-down after a rollback by probation, up to 10 s old (seconds); 0: none runs"
        yield _metric("mfmd_probation_cooldown_seconds", text, record.cooldown_left(seconds) if record else 0.0)

    def _pause(self) -> Iterator[Metric]:
        text = "1 while an operator paused the daemon's own changes, or the record of that is damaged"
        yield _metric("mfmd_paused", text, read_pause(self._layout) is not None)

    def _recall(self) -> Iterator[Metric]:
        declined = (read_record(self._layout.recall, Recall) or Recall()).declines
        text = "Recalls that were considered and declined in this state directory"
        yield _metric("mfmd_recalls_declined_total", text, declined)

    def _drift(self) -> Iterator[Metric]:
        state = read_record(self._layout.drift, Drift)
        wanted, observed = self.settings.drift.false_alarms_per_100k > 0.0, self.settings.observe.enabled
        now = drift_state(state, wanted=wanted, observed=observed)
        text = "1 for where the drift alarm stands: " + ", ".join(get_args(DriftState))
        yield _metric("mfmd_drift_state_info", text, {name: name == now for name in get_args(DriftState)}, "state")
        alarms, at = (state.alarms, state.last_alarm) if state else (0, None)
        yield _metric("mfmd_drift_alarms_total", "Drift alarms in this state directory", alarms)
        yield _metric("mfmd_drift_last_alarm_timestamp_seconds", "Unix time of the newest one; 0: none", at or 0.0)
        share = state.evidence / state.level if state and state.level else 0.0
        yield _metric("mfmd_drift_evidence_ratio", "Evidence of a change over the level of an alarm (0-1)", share)

    def _schedule(self) -> Iterator[Metric]:
        state = schedule_state(self._catalog, self._rounds, self._registry)
        following = due(time.time(), state, self.settings)[1]
        text = "New frames still missing until the next round starts"
        yield _metric("mfmd_schedule_frames_missing", text, following.frames_missing)
        text = "1 for what holds a round that is called for: " + ", ".join(get_args(Held))
        held = {name: name == following.held for name in get_args(Held)}
        yield _metric("mfmd_schedule_held_info", text, held, "reason")
        text = "Time that rounds used a device for in the last 24 hours (seconds)"
        yield _metric("mfmd_schedule_used_seconds", text, 60.0 * following.used_minutes)
        text = "Time that they may use it for in 24 hours (seconds); 0: no limit"
        yield _metric("mfmd_schedule_budget_seconds", text, 60.0 * self.settings.schedule.advanced.minutes_per_day)
        yield _metric("mfmd_round_consecutive_failures", "Consecutive failed rounds, up to the last", state.failures)

    def _observed(self) -> Iterator[Metric]:
        means = None
        if self._layout.observations.exists():
            with Observations.open(self._layout.observations, writable=False) as observations:
                means = observations.means(OBSERVED_FRAMES)
        names, area = [entry.name for entry in self.settings.classes], means.area if means else []
        ratio = dict(zip(names, area, strict=True)) if len(names) == len(area) else {}
        frames = f"the {OBSERVED_FRAMES} newest observed frames"
        yield _metric("mfmd_observed_frames", "Number of newest frames in the averages", means.frames if means else 0)
        text = f"Mean share of pixels per predicted class over {frames} (0-1)"
        yield _metric("mfmd_prediction_class_ratio", text, ratio, "class")
        if means is not None:
            text = "Mean softmax entropy over these frames (nats)"
            yield _metric("mfmd_prediction_entropy", text, means.entropy)
            text = "Mean largest softmax probability over these frames (0-1)"
            yield _metric("mfmd_prediction_confidence", text, means.confidence)
            yield _metric("mfmd_observed_last_timestamp_seconds", "Unix time of the newest observation", means.at)

    def _kids(self) -> Iterator[Metric]:
        children = self._children()
        up = {child.name: not child.problem for child in children}
        restarts = {child.name: child.restarts for child in children}
        text = "1 while the child process does its work; 0 from its end or hang until it is ready again"
        yield _metric("mfmd_component_up", text, up, "component")
        yield _metric("mfmd_component_restarts_total", "Restarts of the child process", restarts, "component")

    def _secrets(self) -> Iterator[Metric]:
        files = secret_files(self.settings)
        exposed = {name: name in files and bool(exposure(files[name])) for name in SECRETS}
        text = "1 for each file with a secret that other users can read, change or replace"
        yield _metric("mfmd_secret_exposed", text, exposed, "secret")
        planes = {"control": self.settings.control.certificate, "serving": self.settings.serving.certificate}
        ends = {plane: (first_end(path) if path else None) or 0.0 for plane, path in planes.items()}
        text = "Unix time at which the first certificate in a plane's file ends; 0: it has none"
        yield _metric("mfmd_certificate_end_timestamp_seconds", text, ends, "plane")

    def _masks(self) -> Iterator[Metric]:
        report = read_report(self._layout.run_file("masks")) or MaskReport()
        runs = any(child.name == "masks" and child.running for child in self._children())
        results = {"written": report.written, "refused": report.refused, "failed": report.failed}
        text = (
            "Images of the drop folder that needed a mask, by result: written, refused (no usable image), "
            "failed (computing or writing the mask failed)"
        )
        yield _metric("mfmd_masks_total", text, results, "result")
        yield _metric("mfmd_masks_pending", "Images that wait for their mask", report.pending)
        text = "1 while the masks process writes; 0: off, stopped, or another process writes"
        yield _metric("mfmd_masks_active", text, report.active and runs)
        text = "1 while the masks process can list the drop folder"
        yield _metric("mfmd_masks_folder_present", text, report.folder_present and runs)
        text = "Unix time of the newest mask (seconds); 0: none since the masks process started"
        yield _metric("mfmd_masks_last_written_timestamp_seconds", text, report.last_written)

    def _buffer_bytes(self) -> int:
        measured, size = self._size
        now = time.monotonic()
        if not measured or now - measured > SIZE_SECONDS:
            size = _tree_bytes(str(self._layout.buffer))
            self._size = (now, size)
        return size


def cause_of(move: HistoryEvent) -> str:
    """Return why the serving ref moved, one of `CAUSES`."""
    if move.by != GATE:
        return "operator"
    return {"promoted": "round", "recalled": "recall"}.get(move.event, "probation")


def _checks(checks: Sequence[Check]) -> Iterator[Metric]:
    scores = {check.name: check.value for check in checks if check.value is not None}
    limits = {check.name: check.limit for check in checks if check.limit is not None}
    text = "Value of each check of the last verdict; for votes the candidate's advantage over the incumbent"
    yield _metric("mfmd_gate_score", text, scores, "gate")
    text = (
        "Limit of each check of the last verdict; for votes the bootstrap's lower bound, which must exceed 0 or the "
        "margin that the gate asks for; for a canary too small to vote the upper bound, which must reach 0"
    )
    yield _metric("mfmd_gate_limit", text, limits, "gate")
    passed = {check.name: check.passed for check in checks}
    yield _metric("mfmd_gate_passed", "1 for each check of the last verdict that passed", passed, "gate")


def _metric(name: str, text: str, values: float | Mapping[str, float], label: str = "") -> Metric:
    """Return a gauge, or a counter if its name says `_total`; with a `label`, one value for each of its values."""
    kind = CounterMetricFamily if name.endswith("_total") else GaugeMetricFamily
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
