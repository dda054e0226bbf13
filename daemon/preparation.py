"""From a file that stood still to a frame that can be committed, or to the reason why not. Runs in worker threads."""

from collections.abc import Callable
from dataclasses import dataclass

from configs.settings import Settings
from daemon.arrival import Arrival, FileChanged, read_arrival
from daemon.capture_time import capture_time, source_label
from daemon.logs import get_logger
from storage.digest import digest_of
from storage.errors import RefusedImage
from storage.frames import NewFrame, Packed
from storage.images import FittedFrame, decode_photo, fit_frame
from storage.perceptual_hash import perceptual_hash

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Ready:
    """A frame for the buffer."""

    arrival: Arrival
    frame: NewFrame


@dataclass(frozen=True, slots=True)
class Duplicate:
    """Content that was committed before; it was not decoded."""

    arrival: Arrival
    digest: str


@dataclass(frozen=True, slots=True)
class Refusal:
    """A file that will not do until it changes."""

    arrival: Arrival
    reason: str
    detail: str
    digest: str | None


@dataclass(frozen=True, slots=True)
class Later:
    """A file that could not be read just now."""

    arrival: Arrival
    error: str


@dataclass(frozen=True, slots=True)
class Skipped:
    """A good image that admission leaves out."""

    arrival: Arrival
    reason: str
    detail: str
    digest: str


Prepared = Ready | Duplicate | Refusal | Later


class Preparation:
    """Reads, hashes, decodes and fits files."""

    def __init__(
        self, settings: Settings, committed: Callable[[str], bool], pack: Callable[[FittedFrame], Packed]
    ) -> None:
        """`committed` tells whether a digest was ever committed; both functions are called from worker threads."""
        self._watch, self._buffer, self._committed, self._pack = settings.watch, settings.buffer, committed, pack
        self._hashing = settings.admission.near_duplicate_bits is not None  # half as costly as decoding

    def prepare(self, arrival: Arrival) -> Prepared:
        """What becomes of one file. Never raises for anything that is wrong with the file."""
        try:
            data = read_arrival(self._watch.folder, arrival, self._watch.max_file_bytes)
        except RefusedImage as error:
            return Refusal(arrival, error.reason, str(error), None)
        except (FileChanged, OSError, MemoryError) as error:
            return Later(arrival, f"{type(error).__name__}: {error}")
        digest = digest_of(data)
        if self._committed(digest):
            return Duplicate(arrival, digest)
        return self._decode(arrival, data, digest)

    def _decode(self, arrival: Arrival, data: bytes, digest: str) -> Prepared:
        try:
            frame = self._frame(arrival, data, digest)
        except RefusedImage as error:
            return Refusal(arrival, error.reason, str(error).removeprefix("image: "), digest)
        except Exception as error:  # a bug in a decoder must cost one file, not ingest
            log.error("decoder_failed", file=arrival.file.path, error=str(error), exc_info=True)
            return Refusal(arrival, "not_an_image", f"the decoder failed: {type(error).__name__}: {error}", digest)
        return Ready(arrival, frame)

    def _frame(self, arrival: Arrival, data: bytes, digest: str) -> NewFrame:
        watch = self._watch
        photo = decode_photo(
            data, max_bytes=watch.max_file_bytes, max_pixels=watch.max_pixels, max_aspect=watch.max_aspect
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
            packed=self._pack(fitted),
        )
