"""The status for an operator, from storage and run files: works with the daemon up or down; imports no torch."""

import shutil
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TypeVar

from configs.errors import ConfigError
from configs.settings import Settings
from daemon.gate.suggestion import waiting_version
from daemon.net.token import serving_token
from daemon.rounds.history import RoundSummary, schedule_state, summaries
from daemon.rounds.schedule import NextRound, due
from daemon.runtime.activity import Activity, IngestActivity, WatchActivity
from daemon.runtime.run_record import current_record, read_run_record
from daemon.status.conditions import describe_conditions
from daemon.status.daemon_probe import running_activity
from daemon.status.messages import operator_messages, waiting_messages
from daemon.status.model import (
    OBSERVED_FRAMES,
    BufferStatus,
    DaemonStatus,
    ObservedStatus,
    RunningRound,
    Status,
)
from daemon.status.plane_probe import PlaneStatus, probe_plane
from daemon.watch.scan import missing_marker
from storage.buffer.catalog import Catalog
from storage.canary.records import CanaryState
from storage.durable.record import AnyRecord, read_record
from storage.errors import CorruptCheckpoint, NewerRecord, StorageError
from storage.gate.conditions import ConditionStore
from storage.gate.drift import Drift, drift_state
from storage.gate.pause import read_pause
from storage.gate.probation import Probation
from storage.gate.recall import Recall
from storage.layout import StateLayout
from storage.registry.registry import CheckpointRegistry
from storage.rounds.folder import RoundStore

LAST_ROUNDS = 5
STARTING_SECONDS = 60.0
"""An inference plane that does not answer yet is nothing to worry about for this long (seconds)."""

__all__ = ["Status", "collect_status"]

Read = TypeVar("Read")


def collect_status(settings: Settings) -> Status:
    """Return the current status. A part of the state directory that cannot be read becomes a message, not an error."""
    return _Collector(settings).collect()


class _Collector:
    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._layout = StateLayout(settings.state)
        self._registry = CheckpointRegistry(self._layout.checkpoints)
        self._rounds = RoundStore(self._layout.rounds)
        self._up = self._layout.locked()
        self._damage: list[str] = []

    def collect(self) -> Status:
        """Return the status of all parts."""
        serving = self._read(self._registry.serving, None)
        serving_damaged = bool(self._damage)  # nothing else is read before
        activity, daemon = self._activity(), self._daemon()
        rounds: list[RoundSummary] = self._read(lambda: summaries(self._rounds, LAST_ROUNDS + 1, alive=self._up), [])
        self._read(lambda: check_serving_files(self._registry), None)
        drift = self._record(self._layout.drift, Drift)
        alarms, observed = self._settings.drift.false_alarms_per_100k, self._settings.observe.enabled
        known = len(self._damage)
        buffer = self._read(self._buffer, BufferStatus(capacity=self._settings.buffer.capacity_frames))
        status = Status(
            at=time.time(),
            state=str(self._layout.root),
            folder=str(self._settings.watch.folder),
            daemon=daemon,
            watch=activity.watch,
            ingest=activity.ingest,
            children=activity.children,
            mirrors=activity.mirrors,
            settings=activity.settings,
            buffer=buffer,
            buffer_damaged=len(self._damage) > known,
            serving=serving,
            serving_damaged=serving_damaged,
            previous=self._read(lambda: self._registry.ref("previous"), None),
            versions=self._registry.versions(),
            plane=self._plane(daemon, activity),
            round=self._read(lambda: self._running(rounds), None),
            last_rounds=[item for item in rounds if item.result != "running"][:LAST_ROUNDS],
            suggested=self._read(lambda: waiting_version(self._rounds), None),
            probation=self._record(self._layout.probation, Probation),
            conditions=describe_conditions(self._read(ConditionStore(self._layout.conditions).read, None)),
            canary=self._record(self._layout.canary / "state.json", CanaryState),
            recall=self._record(self._layout.recall, Recall),
            pause=read_pause(self._layout),
            drift=drift,
            drift_state=drift_state(drift, wanted=alarms > 0.0, observed=observed),
            budget_minutes=self._settings.schedule.advanced.minutes_per_day,
            next_round=self._read(self._next, NextRound(frames_missing=0, not_before=None, waiting_for="")),
            observed=self._read(self._observed, None),
            messages=[],
        )
        told = waiting_messages(activity)
        damage = [problem for problem in dict.fromkeys(self._damage) if not any(problem in line for line in told)]
        if activity.damage and not self._damage:  # otherwise it is probably what was read just now
            damage = [activity.damage]
        messages = [*damage, *told, *operator_messages(status, self._settings)]
        return status.model_copy(update={"messages": messages})

    def _read(self, read: Callable[[], Read], otherwise: Read) -> Read:
        """Return what was read, or `otherwise`; then the damage becomes a message."""
        try:
            return read()
        except (StorageError, OSError) as error:
            self._damage.append(str(error))
            return otherwise

    def _record(self, path: Path, kind: type[AnyRecord]) -> AnyRecord | None:
        return self._read(lambda: read_record(path, kind, f"; remove {path}"), None)  # what writes it starts anew

    def _catalog(self) -> AbstractContextManager[Catalog | None]:
        path = self._layout.catalog
        return closing(Catalog.open(path, writable=False)) if path.exists() else nullcontext()

    def _daemon(self) -> DaemonStatus:
        file = read_run_record(self._layout.run_file("daemon")) if self._up else None
        if file is None:
            return DaemonStatus(up=self._up)
        return DaemonStatus(up=True, pid=file.pid, since=file.since, host=file.host, port=file.port)

    def _plane(self, daemon: DaemonStatus, activity: Activity) -> PlaneStatus:
        """Probe the inference plane, which may be starting. Only some users can read the token that it may want."""
        file = current_record(self._layout, "serve")
        try:
            plane = probe_plane(file, serving_token(self._settings.serving))
        except ConfigError as error:
            self._damage.append(str(error))
            plane = probe_plane(file)
            plane = plane.model_copy(update={"refused": False}) if plane.refused else plane  # why is told already
        if plane.up or plane.refused or not (daemon.up and self._settings.serving.enabled):
            return plane
        child = next((child for child in activity.children if child.name == "serve"), None)
        waits = child is not None and bool(child.hangs or child.reason or child.next_start)
        begun = child.since if child is not None else None  # None: it will be started in a moment
        begun = begun or daemon.since or time.time()
        return plane.model_copy(update={"starting": not waits and time.time() - begun < STARTING_SECONDS})

    def _activity(self) -> Activity:
        """Return the daemon's activity; if the daemon is down, whether the folder exists."""
        if self._up:
            return running_activity(self._layout)
        watch, unmarked = WatchActivity(state="stopped"), missing_marker(self._settings.watch)
        if not self._settings.watch.folder.is_dir():
            watch = WatchActivity(state="missing")
        elif unmarked:
            watch = WatchActivity(state="unmounted", detail=f"{unmarked}: not mounted?")
        return Activity(watch=watch, ingest=IngestActivity(state="stopped"))

    def _buffer(self) -> BufferStatus:
        free = shutil.disk_usage(self._layout.root).free if self._layout.root.is_dir() else None
        empty = BufferStatus(capacity=self._settings.buffer.capacity_frames, disk_free_bytes=free)
        with self._catalog() as catalog:
            return empty.model_copy(update=asdict(catalog.counts())) if catalog else empty

    def _running(self, rounds: list[RoundSummary]) -> RunningRound | None:
        runs = next((item.round for item in rounds if item.result == "running"), None)
        if runs is None:
            return None
        folder = self._rounds.folder(runs)
        return RunningRound(round=runs, progress=folder.last_progress(), seconds_left=folder.seconds_left())

    def _next(self) -> NextRound:
        with self._catalog() as catalog:
            return due(time.time(), schedule_state(catalog, self._rounds, self._registry), self._settings)[1]

    def _observed(self) -> ObservedStatus | None:
        path = self._layout.observations
        if not path.exists():
            return None
        from storage.buffer.observations import Observations  # numpy: only where there is something to read

        with Observations.open(path, writable=False) as observations:
            means = observations.means(OBSERVED_FRAMES)
        if means is None:
            return None
        names = [entry.name for entry in self._settings.classes]
        return ObservedStatus(
            frames=means.frames,
            version=means.version,
            entropy=means.entropy,
            confidence=means.confidence,
            class_ratio=dict(zip(names, means.area, strict=False)),
        )


def check_serving_files(registry: CheckpointRegistry, *, content: bool = False) -> None:
    """Raise StorageError, with what to do, if files of the version that should serve are missing or truncated.

    `content` also hashes them. Return if no version should serve, or if its ref cannot be read, because the reader of
    the ref reports that.
    """
    serving = registry.readable_refs()[0].get("serving")
    if serving is None:
        return
    registry.serving_version()
    try:
        registry.verify(serving.version, content=content)
    except NewerRecord:
        raise
    except CorruptCheckpoint as error:
        remedy = registry.instead_of(serving.version)
        raise StorageError(f"version {serving.version} should serve, but is damaged: {error}; {remedy}") from error
