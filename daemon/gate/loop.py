"""The daemon's thread of the gate between rounds: each rule looks at the stream once in a step."""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from typing import Protocol

from configs.round import LeftOut
from configs.settings import Settings
from daemon.gate.changes import ConditionChange, write_change
from daemon.gate.frame_choice import FrameJudge
from daemon.runtime.logs import get_logger
from storage.buffer.catalog_records import FrameRecord
from storage.buffer.frames import FrameBuffer
from storage.errors import DurabilityLost, StorageError
from storage.gate.comparisons import ComparisonStore
from storage.gate.conditions import Conditions, ConditionStore
from storage.gate.pause import Pause, read_pause
from storage.layout import StateLayout
from storage.registry.registry import CheckpointRegistry

POLL_SECONDS = 1.0
"""Interval between two looks at the stream (seconds)."""

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class GateContext:
    """What a rule needs."""

    settings: Settings
    """The settings in force."""
    layout: StateLayout
    buffer: FrameBuffer
    registry: CheckpointRegistry
    conditions: ConditionStore
    comparisons: ComparisonStore
    records: Callable[[], list[FrameRecord]]
    """Frames of the buffer in commit order, read once in a step: most of an idle step is that. Raises StorageError."""
    now: float
    """Time of this step (Unix, seconds). It may jump; a rule never waits for a time in the future."""
    left_out: Mapping[int, LeftOut] = field(default_factory=dict)
    """Frames that are no evidence, with the reason of each (`frame_rules.NO_EVIDENCE`)."""
    paused: bool = False
    """Whether an operator paused the daemon's own changes."""

    @property
    def class_weights(self) -> tuple[float, ...] | None:
        """How much each class counts in mIoU; None: all alike."""
        return self.settings.gate.weights([entry.name for entry in self.settings.classes])


class StreamRule(Protocol):
    """A rule of the gate that follows the stream: conditions, recall, probation, drift. One file each."""

    def step(self, context: GateContext) -> None:
        """Look at what is new and act on it. Everything that a restart needs is on the disk. Raises StorageError."""
        ...


class GateLoop:
    """Runs the rules in order, one step a second."""

    def __init__(
        self, settings: Settings, buffer: FrameBuffer, registry: CheckpointRegistry, rules: Sequence[StreamRule]
    ) -> None:
        self.settings = settings
        """Of the next step; a reload replaces them."""
        self._buffer, self._registry, self._rules = buffer, registry, tuple(rules)
        self._layout = StateLayout(settings.state)
        self._judge = FrameJudge()
        self._pause: Pause | None = None
        self._lock = threading.Lock()

    def change(self, change: ConditionChange) -> Conditions:
        """Change the known conditions between two steps, durably. Raises as `changes.apply`, or StorageError."""
        with self._lock:
            return write_change(self._layout, self._buffer.catalog, change)

    def step(self) -> float:
        """Let every rule look at the stream; return the seconds until the next step. Raises the first StorageError."""
        records = cache(self._buffer.records)
        context = GateContext(
            settings=self.settings,
            layout=self._layout,
            buffer=self._buffer,
            registry=self._registry,
            conditions=ConditionStore(self._layout.conditions),
            comparisons=ComparisonStore(self._layout.comparisons),
            records=records,
            now=time.time(),
            left_out=self._left_out(records),
            paused=self._look_for_pause(),
        )
        with self._lock:
            self._run(context)
        return POLL_SECONDS

    def _look_for_pause(self) -> bool:
        """Return whether it is paused; log each change, whoever made it."""
        before, self._pause = self._pause, read_pause(self._layout)
        if self._pause is not None and self._pause != before:
            log.warning("paused", by=self._pause.by, reason=self._pause.reason)
        elif self._pause is None and before is not None:
            log.info("resumed", paused_by=before.by, reason=before.reason)
        return self._pause is not None

    def _left_out(self, records: Callable[[], list[FrameRecord]]) -> Mapping[int, LeftOut]:
        with suppress(StorageError):  # the rules meet it too, and say so
            if (serving := self._registry.serving()) is not None:
                released = self._registry.released(serving.version)
                return self._judge.left_out(records(), self.settings, released)
        return {}

    def _run(self, context: GateContext) -> None:
        problems = []
        for rule in self._rules:
            try:
                rule.step(context)
            except DurabilityLost:
                raise
            except StorageError as error:  # the others do not depend on it
                problems.append(error)
        if problems:
            raise problems[0]
