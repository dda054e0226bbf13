"""A video on its way into the buffer: its frames are decoded one after the other, a few at a time, as ingest asks.

Nothing but the catalog remembers how far it came: each frame has a digest of its own, and the row of the video itself
is written with its last frames. After a kill the video is unknown; it is decoded again from its begin, and frames whose
digest is known are passed over.
"""

import hashlib
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import BinaryIO

from configs.settings import Settings
from daemon.ingest.admission import Skip
from daemon.ingest.capture_time import capture_time, source_label
from daemon.runtime.logs import get_logger
from daemon.watch.arrival import Arrival, FileChanged, check_still, open_arrival
from storage.buffer.frames import FinishedVideo, NewFrame, Packed
from storage.durable.digest import digest_in_video
from storage.errors import RefusedImage, StorageError
from storage.media.images import FittedFrame, fit_frame
from storage.media.perceptual_hash import perceptual_hash
from storage.media.videos import MICROSECONDS, Shot, Video

PART_SECONDS = 0.25
"""About how long a worker works at a video before it comes back for more; ingest may wait for it (seconds)."""
HASHED_AT_ONCE = 1 << 20
"""Bytes that are hashed between two looks at the clock."""

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Ended:
    """A video of which at least one frame was decoded has come to its end."""

    damage: str
    """What of it could not be decoded; empty when all of it was."""


@dataclass(frozen=True, slots=True)
class Unusable:
    """A video of which nothing can be taken until it changes."""

    reason: str
    detail: str


@dataclass(frozen=True, slots=True)
class Known:
    """A video that was committed before; it was not decoded."""


@dataclass(frozen=True, slots=True)
class Interrupted:
    """A video that changed or could not be read just now. What was committed of it stays."""

    error: str


End = Ended | Unusable | Known | Interrupted


@dataclass(frozen=True, slots=True)
class Part:
    """What a worker got out of a video in one go."""

    reel: "Reel"
    """The video."""
    frames: list[NewFrame]
    """Frames that were not committed before; maybe none."""
    end: End | None
    """What became of it, when it is over."""


class Reel:
    """One video. `more` is called from worker threads, by one at a time; the rest belongs to ingest's thread."""

    def __init__(
        self,
        settings: Settings,
        arrival: Arrival,
        format: str,
        committed: Callable[[str], bool],
        pack: Callable[[FittedFrame], Packed | None],
    ) -> None:
        """Opens nothing yet. `format`: of `storage.media.videos.video_format`; the functions as for `Preparation`."""
        self.arrival = arrival
        self._watch, self._buffer, self._format = settings.watch, settings.buffer, format
        self._hashing = settings.admission.near_duplicate_bits is not None
        self._committed, self._pack = committed, pack
        self._digest = self._frame_digest = ""
        self._taken = self._skipped = 0
        self._skip: Skip | None = None
        self._running = self._run()

    def more(self, limit: int) -> Part:
        """Decode on: until there are `limit` frames, or for a moment. Raises StorageError for a catalog that cannot be
        asked, never for anything that is wrong with the file.
        """
        frames: list[NewFrame] = []
        until = time.monotonic() + PART_SECONDS
        while len(frames) < limit and time.monotonic() < until:
            try:
                frame = next(self._running)
            except StopIteration as stop:
                return Part(self, frames, stop.value)
            if frame is not None:
                frames.append(frame)
        return Part(self, frames, None)

    def close(self) -> None:
        """Let go of the file, wherever in it the workers are; not while one of them is at it."""
        self._running.close()

    def admitted(self, frame: NewFrame) -> None:
        """A frame of it is on its way into the buffer."""
        self._frame_digest, self._taken = frame.digest, self._taken + 1

    def left_out(self, skip: Skip) -> None:
        """Admission does not want a frame of it."""
        self._skip, self._skipped = skip, self._skipped + 1

    @property
    def digest(self) -> str:
        """Hex SHA-256 of the file; empty until it is known."""
        return self._digest

    @property
    def skip(self) -> Skip | None:
        """Why nothing of it is stored, when admission left out every frame; says so of the last one."""
        if self._taken or self._skip is None:
            return None
        return Skip(self._skip.reason, f"all {self._skipped} frames; the last: {self._skip.detail}", self._skip.pending)

    def finished(self, damage: str) -> FinishedVideo:
        """Its row, once its last frame was admitted or left out."""
        detail = f"{damage}; {self._taken} frames were taken" if damage else ""
        reason = "truncated" if damage else ""
        return FinishedVideo(self.arrival.file, self._digest, self._frame_digest, reason, detail)

    def _run(self) -> Generator[NewFrame | None, None, End]:
        """Frames that are new, none where time passed without one; how it ended."""
        decoded = [0]
        try:
            self._check_size()
            with open_arrival(self._watch.folder, self.arrival) as file:
                yield from self._hash(file)
                if self._committed(self._digest):
                    return Known()
                return (yield from self._take(file, decoded))
        except RefusedImage as error:
            what = str(error).removeprefix("video: ")
            return Ended(what) if decoded[0] else Unusable(error.reason, what)
        except (FileChanged, OSError, MemoryError) as error:
            return Interrupted(f"{type(error).__name__}: {error}")
        except StorageError:
            raise
        except Exception as error:  # a bug in a decoder must cost one file, not ingest
            log.error("decoder_failed", file=self.arrival.file.path, error=str(error), exc_info=True)
            what = f"the decoder failed: {type(error).__name__}: {error}"
            return Ended(what) if decoded[0] else Unusable("not_an_image", what)

    def _check_size(self) -> None:
        size, limit = self.arrival.file.size, self._watch.max_video_bytes
        if size > limit:
            raise RefusedImage("too_many_bytes", f"{size} bytes; watch.max_video_bytes is {limit}")

    def _hash(self, file: BinaryIO) -> Generator[None, None, None]:
        seen = hashlib.sha256()
        while data := file.read(HASHED_AT_ONCE):
            seen.update(data)
            yield None
        check_still(self._watch.folder, self.arrival)
        self._digest = seen.hexdigest()

    def _take(self, file: BinaryIO, decoded: list[int]) -> Generator[NewFrame | None, None, End]:
        watch, spacing = self._watch, self._watch.video_seconds or 1.0
        with Video("video", file, self._format, max_pixels=watch.max_pixels, max_aspect=watch.max_aspect) as video:
            begin = capture_time(watch, self.arrival.file, {}, recorded=video.created)
            for shot in video.shots(spacing):
                decoded[0] += 1
                yield None if shot is None else self._new_frame(shot, begin)
        check_still(watch.folder, self.arrival)
        if not decoded[0]:
            return Unusable("truncated", video.damage or "no frame of it can be decoded")
        return Ended(video.damage)

    def _new_frame(self, shot: Shot, begin: float) -> NewFrame | None:
        """The frame for the buffer; none when it was committed before."""
        digest = digest_in_video(self._digest, shot.microseconds)
        if self._committed(digest):
            self._frame_digest, self._taken = digest, self._taken + 1
            return None
        fitted = fit_frame(shot.pixels(), self._buffer.height, self._buffer.width)
        check_still(self._watch.folder, self.arrival)  # after decoding: these are pixels of what was hashed
        offset = shot.microseconds / MICROSECONDS
        return NewFrame(
            file=self.arrival.file,
            digest=digest,
            captured_at=begin + offset,
            source_height=shot.height,
            source_width=shot.width,
            frame=fitted,
            source=source_label(self._watch, self.arrival.file),
            phash=perceptual_hash(fitted.cropped()) if self._hashing else "",
            packed=self._pack(fitted),
            offset=offset,
        )
