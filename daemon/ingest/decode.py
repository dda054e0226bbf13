"""From a file that stood still to a frame that can be committed, or to the reason why not. Runs in worker threads."""

from collections.abc import Callable
from dataclasses import dataclass

from configs.settings import Settings
from daemon.ingest.capture_time import capture_time, source_label
from daemon.runtime.logs import get_logger
from daemon.watch.arrival import Arrival, FileChanged, read_arrival
from storage.buffer.frames import NewFrame, Packed
from storage.durable.digest import digest_of
from storage.errors import RefusedImage
from storage.media.images import FittedFrame, decode_photo, fit_frame
from storage.media.perceptual_hash import perceptual_hash

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Decoded:
    """A frame for the buffer."""

    arrival: Arrival
    frame: NewFrame


@dataclass(frozen=True, slots=True)
class AlreadyStored:
    """A file whose content was committed before; it was not decoded."""

    arrival: Arrival
    digest: str


@dataclass(frozen=True, slots=True)
class Refused:
    """A file that cannot be used until it changes."""

    arrival: Arrival
    reason: str
    detail: str
    digest: str | None


@dataclass(frozen=True, slots=True)
class RetryLater:
    """A file that could not be read just now."""

    arrival: Arrival
    error: str


Outcome = Decoded | AlreadyStored | Refused | RetryLater


class Decoder:
    """Reads, hashes, decodes and fits files."""

    def __init__(
        self, settings: Settings, is_stored: Callable[[str], bool], pack: Callable[[FittedFrame], Packed] | None
    ) -> None:
        """`is_stored` tells whether a digest was ever committed; `pack` makes `NewFrame.packed`, unless it is None.

        Both are called from worker threads.
        """
        self._settings, self._watch, self._buffer = settings, settings.watch, settings.buffer
        self._is_stored, self._pack = is_stored, pack
        self._hashing = settings.admission.near_duplicate_bits is not None  # half as costly as decoding

    def decode(self, arrival: Arrival) -> Outcome:
        """Decode one file. Never raises for what is wrong with the file."""
        try:
            data = read_arrival(self._watch.folder, arrival, self._watch.max_file_bytes)
        except RefusedImage as error:
            return Refused(arrival, error.reason, str(error), None)
        except (FileChanged, OSError, MemoryError) as error:
            return RetryLater(arrival, f"{type(error).__name__}: {error}")
        digest = digest_of(data)
        if self._is_stored(digest):
            return AlreadyStored(arrival, digest)
        return self._decode(arrival, data, digest)

    def _decode(self, arrival: Arrival, data: bytes, digest: str) -> Outcome:
        try:
            frame = self._frame(arrival, data, digest)
        except RefusedImage as error:
            return Refused(arrival, error.reason, str(error).removeprefix("image: "), digest)
        except MemoryError as error:  # not what a decoder says of damage: there was none left just then
            return RetryLater(arrival, f"no memory: {error}")
        except Exception as error:  # a bug in a decoder must cost one file, not ingest
            log.error("decoder_failed", file=arrival.file.path, error=str(error), exc_info=True)
            return Refused(arrival, "not_an_image", f"the decoder failed: {type(error).__name__}: {error}", digest)
        return Decoded(arrival, frame)

    def _frame(self, arrival: Arrival, data: bytes, digest: str) -> NewFrame:
        watch = self._watch
        photo = decode_photo(
            data, max_bytes=watch.max_file_bytes, max_pixels=watch.max_pixels, max_aspect=watch.advanced.max_aspect
        )
        fitted = fit_frame(photo.pixels, self._buffer.height, self._buffer.width)
        return NewFrame(
            file=arrival.file,
            digest=digest,
            captured_at=capture_time(watch, arrival.file, photo.exif),
            source_height=photo.pixels.shape[0],
            source_width=photo.pixels.shape[1],
            frame=fitted,
            source=source_label(watch, arrival.file),
            phash=perceptual_hash(fitted.cropped()) if self._hashing else "",
            packed=None if self._pack is None else self._pack(fitted),
        )
