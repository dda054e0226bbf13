"""From a file that stood still to a frame that can be committed, or to the reason why not. Runs in worker threads."""

from collections.abc import Callable
from dataclasses import dataclass

from configs.settings import Settings
from daemon.ingest.capture_time import capture_time, source_label
from daemon.ingest.video_reel import Reel
from daemon.runtime.logs import get_logger
from daemon.watch.arrival import Arrival, FileChanged, read_arrival, read_head
from storage.buffer.frames import FinishedVideo, NewFrame, Packed
from storage.durable.digest import digest_of
from storage.errors import RefusedImage
from storage.media.images import FittedFrame, decode_photo, fit_frame
from storage.media.perceptual_hash import perceptual_hash
from storage.media.videos import HEAD_BYTES, require_extra, video_format

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Ready:
    """A frame for the buffer."""

    arrival: Arrival
    frame: NewFrame
    reel: Reel | None = None
    """The video that it is a frame of."""


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
    pending: bool = False
    """It is near to a frame that is not committed yet: the skip is only true once that is."""


@dataclass(frozen=True, slots=True)
class Finished:
    """A video whose last frames wait for their commit, or are committed."""

    arrival: Arrival
    video: FinishedVideo


Prepared = Ready | Duplicate | Refusal | Later | Reel


class Preparation:
    """Reads, hashes, decodes and fits files."""

    def __init__(
        self, settings: Settings, committed: Callable[[str], bool], pack: Callable[[FittedFrame], Packed | None]
    ) -> None:
        """`committed` tells whether a digest was ever committed, `pack` is for `NewFrame.packed`.

        Both are called from worker threads.
        """
        self._settings, self._watch, self._buffer = settings, settings.watch, settings.buffer
        self._committed, self._pack = committed, pack
        self._hashing = settings.admission.near_duplicate_bits is not None  # half as costly as decoding

    def prepare(self, arrival: Arrival) -> Prepared:
        """What becomes of one file; a video is only recognised. Never raises for what is wrong with the file."""
        try:
            if (reel := self._reel(arrival)) is not None:
                return reel
            data = read_arrival(self._watch.folder, arrival, self._watch.max_file_bytes)
        except RefusedImage as error:
            return Refusal(arrival, error.reason, str(error).removeprefix("video: "), None)
        except (FileChanged, OSError, MemoryError) as error:
            return Later(arrival, f"{type(error).__name__}: {error}")
        digest = digest_of(data)
        if self._committed(digest):
            return Duplicate(arrival, digest)
        return self._decode(arrival, data, digest)

    def _reel(self, arrival: Arrival) -> Reel | None:
        """The file as a video; none when it is no video, by its first bytes, or videos are not wanted."""
        if self._watch.video_seconds is None:
            return None
        form = video_format(read_head(self._watch.folder, arrival, HEAD_BYTES))
        if form is None:
            return None
        require_extra("video")
        return Reel(self._settings, arrival, form, self._committed, self._pack)

    def _decode(self, arrival: Arrival, data: bytes, digest: str) -> Prepared:
        try:
            frame = self._frame(arrival, data, digest)
        except RefusedImage as error:
            return Refusal(arrival, error.reason, str(error).removeprefix("image: "), digest)
        except MemoryError as error:  # not what a decoder says of damage: there was none left just then
            return Later(arrival, f"no memory: {error}")
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
