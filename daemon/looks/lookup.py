"""Find frames and label maps for the page: what exists is read, what does not is asked for or said why."""

import asyncio
import threading
import time
from collections.abc import Callable
from contextlib import closing
from typing import TypeVar

from starlette.concurrency import run_in_threadpool

from configs.settings import Settings
from daemon.looks.pictures import frame_jpeg
from storage.buffer.catalog import Catalog
from storage.buffer.catalog_records import FrameRecord
from storage.buffer.frames import FrameBuffer
from storage.errors import CorruptBuffer, FrameEvicted, StorageError, UnknownVersion
from storage.layout import StateLayout
from storage.looks.store import Look, LookStore, NoLook
from storage.registry.manifest import Manifest
from storage.registry.registry import CheckpointRegistry

Read = TypeVar("Read")
POLL_SECONDS = 0.1
AT_ONCE = threading.BoundedSemaphore(2)
"""Pictures that are decoded at a time: a frame of 2048x1024 takes 6 MiB."""
TOO_OLD = NoLook(state="frame_gone", message="The buffer holds fewer frames than that; go back to the newest.")
NO_FRAMES = NoLook(state="no_buffer", message="No frame was committed yet: put images into the drop folder.")
WAITING = NoLook(state="waiting", message="The observer is asked for it. It answers when it is done with what it does.")
TOO_MANY = NoLook(state="too_many", message="Too many looks wait for the observer; try again in some seconds.")
LOOKS_OFF = NoLook(state="looks_off", message="Frames are not shown: observe.advanced.looks is off.")
OFF = NoLook(
    state="observer_off",
    message="The observer, which segments frames for this page, is off: set observe.enabled to on.",
)


class Lookup:
    """Answers for one state directory."""

    def __init__(self, settings: Settings, registry: CheckpointRegistry) -> None:
        self._settings, self._registry = settings, registry
        self._layout = StateLayout(settings.state)
        self._store = LookStore(self._layout.looks)

    def newest(self, limit: int, skip: int) -> list[FrameRecord] | NoLook:
        """Return the newest frames without the first `skip`, or why there are none."""
        return self._read(lambda catalog: catalog.newest(limit, skip) or (TOO_OLD if skip else NO_FRAMES))

    def frame(self, number: int) -> FrameRecord | NoLook:
        """Return the record of a frame."""
        return self._read(lambda catalog: next(iter(catalog.records(ids=[number])), _gone(number)))

    def _read(self, read: Callable[[Catalog], Read | NoLook]) -> Read | NoLook:
        """Return what the catalog says, if frames may be seen and there is one that can be read."""
        if not self._settings.observe.advanced.looks:
            return LOOKS_OFF
        if not self._layout.catalog.exists():
            return NO_FRAMES
        try:
            with closing(Catalog.open(self._layout.catalog, writable=False)) as catalog:
                return read(catalog)
        except StorageError as error:
            return _unusable(error)

    def picture(self, record: FrameRecord, *, thumbnail: bool) -> bytes | NoLook:
        """Return a frame without padding as JPEG."""
        try:
            with AT_ONCE, FrameBuffer.open(self._layout, self._settings.buffer, writable=False) as buffer:
                pixels = buffer.read(record)[: record.valid_height, : record.valid_width]
                return frame_jpeg(pixels, thumbnail=thumbnail)
        except FrameEvicted:
            return _gone(record.id)
        except CorruptBuffer as error:
            message = f"{error}; `mfmd check --read-data` finds every damaged frame."
            return NoLook(state="frame_damaged", message=message)
        except StorageError as error:
            return _unusable(error)

    def version(self, number: int) -> Manifest | NoLook:
        """Return the manifest of a version."""
        try:
            return self._registry.manifest(number)
        except UnknownVersion as error:
            return NoLook(state="version_gone", message=f"{error}; choose another.")
        except StorageError as error:
            return NoLook(state="version_damaged", message=str(error))

    async def labels(self, record: FrameRecord, manifest: Manifest, seconds: float) -> bytes | NoLook:
        """Return the label map of a frame by a version as a grey PNG, or why there is none; wait some seconds."""
        look = Look.of(record, manifest)
        end = time.monotonic() + seconds
        while True:
            answer = await run_in_threadpool(self._ask, look)
            if answer is not WAITING or time.monotonic() >= end:
                return answer
            await asyncio.sleep(POLL_SECONDS)

    def _ask(self, look: Look) -> bytes | NoLook:
        try:
            if (found := self._store.found(look)) is not None:
                return found
            if not self._settings.observe.enabled:
                return OFF
            return WAITING if self._store.ask(look) else TOO_MANY
        except OSError as error:
            return NoLook(state="failed", message=f"The observer cannot be asked: {error}")


def _gone(frame: int) -> NoLook:
    return NoLook(state="frame_gone", message=f"Frame {frame} is not in the buffer, or left it; choose another.")


def _unusable(error: StorageError) -> NoLook:
    return NoLook(state="buffer_unusable", message=str(error))
