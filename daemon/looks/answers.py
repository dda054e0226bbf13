"""Answer the looks that the page asks for; part of the observer, which has networks in memory."""

import io
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from daemon.runtime.logs import Lasting, get_logger
from storage.errors import CorruptBuffer, CorruptCheckpoint, DurabilityLost, FrameEvicted, StorageError, UnknownVersion
from storage.layout import StateLayout
from storage.looks.store import Look, LookState, LookStore, NoLook

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from adapters.networks.network import SegmentationNetwork
    from storage.buffer.frames import FrameBuffer

IN_A_ROW = 4
"""Looks that are answered before the observer goes on with other work."""
PAUSE_SECONDS = 10.0
"""Pause after answers could not be written (seconds)."""
COMPRESSION = 1
"""Level of zlib: labels of 1024x512 take 11 ms instead of the 67 ms of the default, whose files are a fifth smaller."""

log = get_logger(__name__)


class LookAnswers:
    """Segments the frames that wait. At most one network stays in memory beyond those that the observer has."""

    def __init__(
        self,
        layout: StateLayout,
        loaded: "Callable[[int], SegmentationNetwork | None]",
        load: "Callable[[int], SegmentationNetwork]",
        buffer: "Callable[[], FrameBuffer | None]",
    ) -> None:
        """Let `loaded` give a network that the observer has anyway, `load` any other; `buffer` opens the buffer.

        Answers of an earlier observer are removed.
        """
        self._loaded, self._load, self._buffer = loaded, load, buffer
        self._store, self._lasting = LookStore(layout.looks), Lasting()
        self._extra: dict[int, SegmentationNetwork] = {}
        self._pause_until = 0.0
        self._store.clear()

    def asked(self) -> bool:
        """Return whether a look waits; False for some seconds after the disk refused an answer."""
        return self._next() is not None

    def step(self) -> None:
        """Answer at most `IN_A_ROW` looks. Nothing is raised: the answer may be a reason."""
        for _ in range(IN_A_ROW):
            if (look := self._next()) is None:
                return
            try:
                self._store.answer(look, self._answer(look))
            except (OSError, DurabilityLost) as error:
                self._pause(error)

    def _next(self) -> Look | None:
        try:
            return self._store.waiting() if time.monotonic() >= self._pause_until else None
        except OSError as error:
            self._pause(error)
            return None

    def _pause(self, error: Exception) -> None:
        self._pause_until = time.monotonic() + PAUSE_SECONDS
        if self._lasting.due(str(error)):
            log.warning("looks_wait", error=str(error), seconds=PAUSE_SECONDS)

    def _answer(self, look: Look) -> bytes | NoLook:
        from adapters.errors import AdapterError

        try:
            pixels = self._pixels(look)
            return pixels if isinstance(pixels, NoLook) else _segmented(self._network(look.version), pixels)
        except (CorruptCheckpoint, AdapterError) as error:
            return _none(look, "version_damaged", str(error))
        except UnknownVersion as error:
            return _none(look, "version_gone", str(error))
        except (StorageError, OSError, RuntimeError, MemoryError) as error:  # torch: no memory on the device
            return _none(look, "failed", f"{type(error).__name__}: {error}")

    def _pixels(self, look: Look) -> "NDArray[np.uint8] | NoLook":
        """Return the pixels of a frame [h, w, 3] without padding."""
        try:
            if (buffer := self._buffer()) is None:
                return _none(look, "no_buffer", "no frame was committed yet")
            record = next(iter(buffer.records(ids=[look.frame])), None)
        except StorageError as error:
            return _none(look, "buffer_unusable", str(error))
        try:
            if record is None or record.crc32 != look.crc32:
                return _none(look, "frame_gone", f"frame {look.frame} left the buffer; choose another")
            return buffer.read(record)[: record.valid_height, : record.valid_width]
        except FrameEvicted as error:
            return _none(look, "frame_gone", f"{error}; choose another")
        except CorruptBuffer as error:
            return _none(look, "frame_damaged", f"{error}; `mfmd check --read-data` finds every damaged frame")

    def _network(self, version: int) -> "SegmentationNetwork":
        """Return a network of the observer, or the extra one, loaded and verified if it is another version's."""
        if (known := self._loaded(version) or self._extra.get(version)) is not None:
            return known
        self._extra.clear()  # first: two of them may not fit
        self._extra[version] = self._load(version)
        return self._extra[version]


def _segmented(network: "SegmentationNetwork", pixels: "NDArray[np.uint8]") -> bytes:
    """Return the label map of pixels [h, w, 3] as a grey PNG of class indices [h, w]."""
    from PIL import Image

    from adapters.inference.segment import segment_stored

    file = io.BytesIO()
    Image.fromarray(segment_stored(network, pixels)).save(file, "PNG", compress_level=COMPRESSION)
    return file.getvalue()


def _none(look: Look, state: LookState, message: str) -> NoLook:
    log.warning("look_refused", frame=look.frame, version=look.version, state=state, reason=message)
    return NoLook(state=state, message=message)
