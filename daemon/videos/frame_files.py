"""The frames of one video as image files: lossless, named by the digest of the video and the time of the frame.

The same video gives the same files, byte for byte. So a file that is written again is not stored twice.
"""

import io
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from PIL import ExifTags, Image

from configs.watch import VideoSettings, WatchSettings
from daemon.ingest.decode import EXIF_TIMES, capture_time
from storage import durable
from storage.buffer.catalog_records import FileFact, fact_of
from storage.durable.digest import digest_of
from storage.durable.permissions import shared_files
from storage.errors import RefusedImage
from storage.media.videos import HEAD_BYTES, MICROSECONDS, Video, VideoFrame, video_format

PREFIX = "video-"
"""How the name of each file begins."""
DIGITS = 16
"""Digits of the video's digest in a name."""
PNG_LEVEL = 1
"""Compression level of the PNG files; a fixed one, because another level gives another file."""


@dataclass(frozen=True, slots=True)
class FrameFile:
    """One frame, decoded and not yet encoded."""

    name: str
    captured_at: float
    """Unix time (seconds)."""
    _frame: VideoFrame

    def content(self) -> bytes:
        """Return the PNG file, with the capture time in its EXIF tags."""
        file = io.BytesIO()
        image = Image.fromarray(self._frame.pixels())
        image.save(file, "PNG", exif=_exif(self.captured_at), compress_level=PNG_LEVEL)
        return file.getvalue()


@dataclass(frozen=True, slots=True)
class Written:
    """Result of `write_frames`."""

    written: int
    there: int
    damage: str
    """What could not be decoded; empty when all of the video was."""


def frame_name(digest: str, microseconds: int) -> str:
    """File name of the frame that the video of this digest shows at this time."""
    seconds, rest = divmod(microseconds, MICROSECONDS)
    return f"{PREFIX}{digest[:DIGITS]}-{seconds:06d}.{rest:06d}.png"


class FrameFiles:
    """The wanted frames of an open video, in order; iterating gives None for each skipped frame."""

    damage = ""
    """What could not be decoded, after the last frame; empty when all of it was."""

    def __init__(
        self, file: BinaryIO, fact: FileFact, digest: str, videos: VideoSettings, watch: WatchSettings
    ) -> None:
        """`digest`: hex SHA-256 of the file, which names the frames."""
        self._file, self._fact, self._digest = file, fact, digest
        self._videos, self._watch = videos, watch

    def __iter__(self) -> Iterator[FrameFile | None]:
        """Yield the frames. Raises RefusedImage without any frame, OSError when the file cannot be read."""
        watch, count = self._watch, 0
        self._file.seek(0)
        form = video_format(self._file.read(HEAD_BYTES))
        if form is None:
            raise RefusedImage("not_an_image", "neither an MP4 nor a Matroska file, by its first bytes")
        try:
            with Video(
                "video", self._file, form, max_pixels=watch.max_pixels, max_aspect=watch.advanced.max_aspect
            ) as video:
                begin = capture_time(watch, self._fact, {}, recorded=video.created)
                for frame in video.frames(self._videos.seconds):
                    count += frame is not None
                    yield None if frame is None else self._file_of(frame, begin)
                self.damage = video.damage
        except RefusedImage as error:
            if not count:
                raise
            self.damage = str(error).removeprefix("video: ")  # a frame beyond the limits in the middle ends it there
        if not count:
            raise RefusedImage("truncated", self.damage or "no frame of it can be decoded")

    def _file_of(self, frame: VideoFrame, begin: float) -> FrameFile:
        name = frame_name(self._digest, frame.microseconds)
        return FrameFile(name, begin + frame.microseconds / MICROSECONDS, frame)


def check_size(size: int, videos: VideoSettings) -> None:
    """Raise RefusedImage for an empty file or one of more bytes than the limit."""
    if size == 0:
        raise RefusedImage("empty", "empty (0 bytes)")
    if size > videos.max_bytes:
        raise RefusedImage("too_many_bytes", f"{size} bytes; videos.max_bytes is {videos.max_bytes}")


@shared_files()
def write_frame(frame: FrameFile, path: Path, watch: WatchSettings) -> None:
    """Write one file, complete or not at all.

    Unless `watch.advanced.capture_time` includes EXIF tags, the file's mtime gives the capture time.
    """
    temporary = path.with_name(f".{path.name}{durable.PARTIAL}")  # always the same: a retry replaces what a kill left
    try:
        temporary.write_bytes(frame.content())
        if "exif" not in watch.advanced.capture_time:
            os.utime(temporary, (frame.captured_at, frame.captured_at))
        durable.publish_file(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_frames(path: Path, into: Path, videos: VideoSettings, watch: WatchSettings) -> Written:
    """Write the frames of the video at `path` into the folder `into`. Raises RefusedImage, OSError."""
    status = path.stat()
    check_size(status.st_size, videos)
    durable.make_directory(into, shared=True)
    written = there = 0
    fact = fact_of(path.name, status)
    with path.open("rb") as file:
        frames = FrameFiles(file, fact, digest_of(path), videos, watch)
        for frame in frames:
            if frame is not None and os.path.lexists(into / frame.name):
                there += 1
            elif frame is not None:
                write_frame(frame, into / frame.name, watch)
                written += 1
    return Written(written, there, frames.damage)


def _exif(at: float) -> Image.Exif:
    moment = datetime.fromtimestamp(round(at * MICROSECONDS) / MICROSECONDS, UTC)
    time, offset, fraction = EXIF_TIMES[0]
    exif = Image.Exif()
    exif[ExifTags.IFD.Exif] = {
        time: f"{moment:%Y:%m:%d %H:%M:%S}", offset: "+00:00", fraction: f"{moment.microsecond:06d}",
    }  # fmt: skip
    return exif
