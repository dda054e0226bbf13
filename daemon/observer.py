"""`mfmd observe`: compute statistics and embeddings of committed frames, newest first, at low priority.

The observer is a separate process, because the control plane holds no tensors. Ingest and rounds never wait for it.
"""

import os
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

from configs.settings import Settings
from daemon.gate.frame_facts import facts_of
from daemon.looks.answers import LookAnswers
from daemon.runtime.heartbeat import beating
from daemon.runtime.logs import Lasting, get_logger
from daemon.runtime.signals import stop_event
from storage.buffer.observations import Observation, Observations
from storage.errors import CanaryRefused, CorruptBuffer, FrameEvicted, StorageError
from storage.gate.comparisons import ComparisonRequest, ComparisonScores, ComparisonStore
from storage.layout import StateLayout
from storage.registry.registry import CheckpointRegistry

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from adapters.networks.network import SegmentationNetwork
    from storage.buffer.catalog_records import FrameRecord
    from storage.buffer.frames import FrameBuffer
    from storage.canary.images import CanaryImage
    from storage.source.labelled import LabelledSet

NICE = 10
GROUP = 8
"""Frames observed between two looks at the buffer and the serving ref."""
FACTS = 64
"""Newest frames that get the facts of their pixels before any is observed: a ramp shows in 16 neighbours only."""
GROUP_AT_LEAST = 2
"""Frames of a group that are observed even while somebody waits for a look."""
LOOK_SECONDS = 0.2
"""How often an idle observer finds out whether somebody waits for a look (seconds)."""
THREADS = 1
"""CPU threads; answers and rounds come first."""
RETRY_SECONDS = 10.0
"""Pause after a version or the buffer could not be read (seconds)."""

log = get_logger(__name__)


def observe(settings: Settings) -> int:
    """Observe until SIGTERM or SIGINT; 0 after a clean stop."""
    with stop_event() as stop, beating(StateLayout(settings.state), "observe") as moved:
        _observe_until(stop, settings, moved)
    log.info("observer_stopped")
    return 0


def _observe_until(stop: threading.Event, settings: Settings, moved: Callable[[], None]) -> None:
    os.nice(NICE)
    import torch

    from adapters.errors import AdapterError

    torch.set_num_threads(THREADS)
    observer, lasting = Observer(settings), Lasting()
    try:
        while not stop.is_set():
            moved()
            try:
                pause = 0.0 if observer.step(stop) else settings.observe.advanced.poll_seconds
            except (StorageError, AdapterError, OSError) as error:
                if lasting.due(str(error)):
                    log.warning("observer_waits", error=str(error), seconds=RETRY_SECONDS)
                pause = RETRY_SECONDS
            _wait(stop, pause, observer.looks.asked)
    finally:
        observer.close()


def _wait(stop: threading.Event, seconds: float, asked: Callable[[], bool]) -> None:
    """Wait, but not while somebody waits for a look."""
    end = time.monotonic() + seconds
    while not asked() and (left := end - time.monotonic()) > 0 and not stop.wait(min(left, LOOK_SECONDS)):
        pass


class Observer:
    """Observes one group of frames per step."""

    def __init__(self, settings: Settings) -> None:
        from adapters.inference.segment import choose_device

        self._settings = settings
        self._layout = StateLayout(settings.state)
        self._registry = CheckpointRegistry(self._layout.checkpoints)
        self._device: torch.device = choose_device(settings.serving.device)
        self._files = ExitStack()
        self._opened: tuple[FrameBuffer, Observations] | None = None
        self._networks: dict[int, SegmentationNetwork] = {}
        self._unusable: set[int] = set()
        self._source_seen: set[int] = set()
        self._comparisons = ComparisonStore(self._layout.comparisons)
        self.looks = LookAnswers(self._layout, self._in_memory, self._from_disk, self._buffer)

    def step(self, stop: threading.Event) -> bool:
        """Answer looks, then a comparison, or observe the newest unobserved frames; return whether more may be waiting.

        Raises StorageError or AdapterError if the serving version or the buffer cannot be read.
        """
        self.looks.step()
        ref = self._registry.serving()
        opened = self._open() if ref is not None else None
        if ref is None or opened is None:
            return False
        buffer, observations = opened
        self._observe_source(observations, ref.version)
        records = buffer.records()
        self._look_at(buffer, observations, records, stop)
        if (request := self._comparisons.waiting()) is not None:
            self._comparisons.answer(request.number, self._compare(request, buffer, ref.version))
            return True
        observed = observations.observed(self._registry.released(ref.version)) | self._unusable
        waiting = [record for record in records if record.id not in observed]
        if not waiting:
            observations.forget_all_but([record.id for record in records])
            return False
        found = list[Observation]()
        for record in reversed(waiting[-GROUP:]):
            if stop.is_set() or (len(found) >= GROUP_AT_LEAST and self.looks.asked()):
                break
            found += self._observe(buffer, record, ref.version)
        observations.add(found)
        return True

    def close(self) -> None:
        """Close files."""
        self._files.close()

    def _open(self) -> "tuple[FrameBuffer, Observations] | None":
        """Return buffer and database, opened once a buffer exists."""
        from storage.buffer.frames import FrameBuffer

        if self._opened is None and self._layout.catalog.exists():
            with ExitStack() as files:
                buffer = files.enter_context(FrameBuffer.open(self._layout, self._settings.buffer, writable=False))
                observations = files.enter_context(Observations.open(self._layout.observations, writable=True))
                self._opened, self._files = (buffer, observations), files.pop_all()
        return self._opened

    def _buffer(self) -> "FrameBuffer | None":
        return None if (opened := self._open()) is None else opened[0]

    def _in_memory(self, version: int) -> "SegmentationNetwork | None":
        return self._networks.get(version)

    def _from_disk(self, version: int) -> "SegmentationNetwork":
        from adapters.checkpoints.checkpoint import load_version

        return load_version(self._registry, version, self._device)[0]

    def _observe(self, buffer: "FrameBuffer", record: "FrameRecord", version: int) -> list[Observation]:
        from adapters.scoring.observation import observe_frame

        serving, released = self._load(version)
        pixels = self._pixels(buffer, record)
        if pixels is None:
            return []
        numbers = observe_frame(self._networks[serving], self._networks[released], pixels)
        return [
            Observation(
                frame=record.id,
                version=serving,
                released=released,
                at=time.time(),
                entropy=numbers.entropy,
                confidence=numbers.confidence,
                area=numbers.area,
                embedding=numbers.embedding,
                style=numbers.style,
            )
        ]

    def _look_at(
        self,
        buffer: "FrameBuffer",
        observations: Observations,
        records: Sequence["FrameRecord"],
        stop: threading.Event,
    ) -> None:
        """Write the facts of the newest frames that have none, before the gate concludes anything from their style."""
        known = observations.with_facts() | self._unusable
        found = {}
        for record in [record for record in records if record.id not in known][-FACTS:]:
            if not stop.is_set() and (pixels := self._pixels(buffer, record)) is not None:
                found[record.id] = facts_of(pixels).numbers()
        observations.add_facts(found)

    def _pixels(self, buffer: "FrameBuffer", record: "FrameRecord") -> "NDArray[np.uint8] | None":
        """Return the pixels of a frame [h, w, 3] RGB without padding; None when it left or cannot be read."""
        try:
            return buffer.read(record)[: record.valid_height, : record.valid_width]
        except FrameEvicted:
            return None
        except CorruptBuffer as error:
            log.error("frame_corrupt", frame=record.id, error=str(error))
            self._unusable.add(record.id)
            return None

    def _compare(self, request: ComparisonRequest, buffer: "FrameBuffer", serving: int) -> ComparisonScores:
        """Score the versions of a request; what cannot be read is the answer, so that the rule that asked goes on."""
        from adapters.errors import AdapterError
        from adapters.scoring.comparison import compare_versions

        try:
            _, released = self._load(serving)
            networks = {version: self._in_memory(version) or self._from_disk(version) for version in request.versions}
            source = self._labelled_source() if request.source else None
            known = (networks, self._networks[released], self._canary())
            scores = compare_versions(self._settings, request, buffer, source, *known)
        except (StorageError, AdapterError, OSError) as error:
            log.warning("comparison_failed", comparison=request.number, error=str(error))
            return ComparisonScores(status="failed", reason=str(error))
        log.info("versions_compared", comparison=request.number, versions=request.versions, seconds=scores.seconds)
        return scores

    def _observe_source(self, observations: Observations, version: int) -> None:
        """Give the labelled source images their style vectors, once for each released version."""
        released = self._registry.released(version)
        if released in self._source_seen:
            return
        source = self._labelled_source()
        if source is not None and not len(observations.source_styles(released)):
            from adapters.scoring.observation import source_styles

            _, released = self._load(version)
            observations.add_source_styles(released, source_styles(self._networks[released], source))
        self._source_seen.add(released)

    def _canary(self) -> "list[CanaryImage]":
        """Return the canary images; none while they cannot be read, which `mfmd status` shows."""
        from storage.canary.images import import_canary

        try:
            return import_canary(self._settings, self._layout)
        except CanaryRefused as error:
            log.warning("canary_refused", error=str(error))
            return []

    def _labelled_source(self) -> "LabelledSet | None":
        from storage.source.labelled import LabelledSet

        if self._settings.source is None or not LabelledSet.exists(self._layout):
            return None
        source = LabelledSet.open(self._layout)
        return source if source.read_as(self._settings) else None

    def _load(self, version: int) -> tuple[int, int]:
        """Load the serving version and its released ancestor; drop any other."""
        released = self._registry.released(version)
        for wanted in (version, released):
            if wanted not in self._networks:
                self._networks[wanted] = self._from_disk(wanted)
        self._networks = {key: value for key, value in self._networks.items() if key in (version, released)}
        return version, released
