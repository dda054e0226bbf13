"""Read frames of video files at a spacing, one after another, never more than a few in memory.

It needs PyAV (the extra `video`). Only the demuxers of MP4 and Matroska are used, chosen by the file's first bytes, and
they get an open file only: FFmpeg follows no name, list or address in a file. One thread decodes, so a decoder holds
few pictures back, and damage is concealed in the same way every time.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, BinaryIO, Self

import numpy as np
from numpy.typing import NDArray

from storage.errors import RefusedImage
from storage.media import can_read_videos
from storage.media.image_formats import AVIF_BRANDS, HEIF_BRANDS
from storage.media.images import check_sides

if TYPE_CHECKING:
    import av
    from av.container import InputContainer
    from av.packet import Packet
    from av.video.stream import VideoStream

HEAD_BYTES = 12
"""Bytes at the start of a file that `video_format` needs."""
IMAGE_BRANDS = (*HEIF_BRANDS, *AVIF_BRANDS)
"""Major brands of still images in the container of MP4."""
MATROSKA_MAGIC = b"\x1aE\xdf\xa3"
MICROSECONDS = 1_000_000
LATE_SECONDS = 1.0
"""A video whose frames end this much before the length in its header is truncated (seconds); sound may be a little
longer than the pictures."""


def video_format(head: bytes) -> str | None:
    """Return the demuxer (`mov`, `matroska`) for a file that begins with `head`; None when it is no video."""
    if head[4:8] == b"ftyp" and head[8:12] not in IMAGE_BRANDS:
        return "mov"
    return "matroska" if head.startswith(MATROSKA_MAGIC) else None


@dataclass(frozen=True, slots=True)
class VideoFrame:
    """One frame of a video, decoded and not yet converted."""

    microseconds: int
    """Time at which it is shown, from the first frame of the video."""
    height: int
    """Pixels, upright."""
    width: int
    """Pixels, upright."""
    _frame: "av.VideoFrame"
    _turns: int

    def pixels(self) -> NDArray[np.uint8]:
        """[height, width, 3] RGB, upright."""
        rgb = self._frame.to_ndarray(format="rgb24")
        return np.ascontiguousarray(np.rot90(rgb, self._turns)).astype(np.uint8, copy=False)


class Video:
    """One video file, open. Used by one thread at a time."""

    damage = ""
    """What was wrong with it, after `frames` ended; empty when it was intact."""

    def __init__(self, name: str, file: BinaryIO, format: str, *, max_pixels: int, max_aspect: float) -> None:
        """Read the header; `format` is the result of `video_format`.

        Limits (pixels; ratio of its sides) are checked before a picture is decoded, and for every picture. Raises
        RefusedImage (needs_extra, too_many_pixels, aspect, not_an_image, truncated), OSError.
        """
        if not can_read_videos():
            raise RefusedImage("needs_extra", f"{name}: a video; install the extra that reads it: mfmd[video]")
        self._name, self._file, self._format = name, _Reader(file), format
        self._max_pixels, self._max_aspect = max_pixels, max_aspect
        # Without a decoder first: a header may promise a picture that no memory holds.
        with self._open({"codec_whitelist": "none"}) as container:
            self._check(self._stream_of(container))
        self._container = self._open({"max_pixels": str(max_pixels)})
        try:
            self._stream = self._stream_of(self._container)
            self._check(self._stream)
            if not self._stream.codec_context.width:  # what FFmpeg says of one beyond `max_pixels`
                raise RefusedImage("too_many_pixels", f"{name}: more than {max_pixels} pixels, or no size that is read")
        except BaseException:
            self.close()
            raise
        self._stream.codec_context.thread_count = 1
        self.created = str(self._container.metadata.get("creation_time", ""))
        """Recording time in the header (ISO 8601); empty when it has none."""

    def close(self) -> None:
        """Close the decoder; the file itself stays open."""
        self._container.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def frames(self, spacing: float) -> Iterator[VideoFrame | None]:
        """Yield the first frame of every `spacing` seconds, and None for each frame in between.

        The times alone determine these frames. Damaged frames are skipped; see `damage`. Raises RefusedImage for a
        frame beyond the limits, OSError when the file cannot be read.
        """
        step, last, number = max(1, round(spacing * MICROSECONDS)), -1, 0
        begin: int | None = None
        end = 0
        for frame in self._decoded():
            at = self._microseconds(frame, number)
            begin, number = at if begin is None else begin, number + 1
            at -= begin
            end = max(end, at)
            if at // step <= last:
                yield None
                continue
            last = at // step
            yield self._upright(frame, at)
        self._note_end(number, end)

    def _decoded(self) -> Iterator["av.VideoFrame"]:
        import av

        for packet in self._packets():
            try:
                frames = packet.decode()
            except av.FFmpegError as error:
                self._record_damage(f"a part of it cannot be decoded ({error.strerror})")
                continue
            for frame in frames:
                assert isinstance(frame, av.VideoFrame)
                if frame.is_corrupt:
                    self._record_damage("a part of it is damaged")
                else:
                    yield frame

    def _packets(self) -> Iterator["Packet[VideoStream]"]:
        import av

        packets = self._container.demux(self._stream)
        while True:
            try:
                packet = next(packets, None)
            except av.FFmpegError as error:
                self._file.complain()
                self._record_damage(f"cannot be read to its end ({error.strerror})")
                return
            self._file.complain()
            if packet is None:
                return
            yield packet

    def _upright(self, frame: "av.VideoFrame", at: int) -> VideoFrame:
        check_sides(self._name, frame.width, frame.height, self._max_pixels, self._max_aspect)
        turns = round(frame.rotation / 90) % 4
        sides = (frame.height, frame.width) if turns % 2 == 0 else (frame.width, frame.height)
        return VideoFrame(at, *sides, frame, turns)

    def _microseconds(self, frame: "av.VideoFrame", number: int) -> int:
        """Return the time of a frame; computed when the file does not say."""
        if frame.pts is not None and frame.time_base is not None:
            return round(frame.pts * frame.time_base * MICROSECONDS)
        return round(number / (self._stream.average_rate or Fraction(25)) * MICROSECONDS)

    def _note_end(self, number: int, end: int) -> None:
        """Note missing frames at the end, because neither container reports them."""
        stream, length = self._stream, self._container.duration or 0
        if stream.duration is not None and stream.time_base is not None:
            length = round(stream.duration * stream.time_base * MICROSECONDS)
        interval = round(MICROSECONDS / (stream.average_rate or Fraction(25)))
        if number and length - end > LATE_SECONDS * MICROSECONDS + interval:
            self._record_damage(f"ends after {end / MICROSECONDS:.1f} of {length / MICROSECONDS:.1f} s")

    def _record_damage(self, what: str) -> None:
        self.damage = self.damage or what

    def _open(self, options: dict[str, str]) -> "InputContainer":
        import av

        self._file.seek(0)
        try:
            return av.open(self._file, "r", format=self._format, options=options, metadata_errors="replace")
        except (av.FFmpegError, ValueError, OverflowError) as error:
            self._file.complain()
            raise RefusedImage(
                "truncated", f"{self._name}: the video's header is damaged or cut off: {error}"
            ) from error

    def _stream_of(self, container: "InputContainer") -> "VideoStream":
        """Return the first video track that is no cover. Raises RefusedImage."""
        from av.stream import Disposition

        for stream in container.streams.video:
            if not stream.disposition & Disposition.attached_pic:
                return stream
        raise RefusedImage("not_an_image", f"{self._name}: a file without a video track")

    def _check(self, stream: "VideoStream") -> None:
        width, height = stream.codec_context.width, stream.codec_context.height
        if width and height:
            check_sides(self._name, width, height, self._max_pixels, self._max_aspect)


class _Reader:
    """The file as FFmpeg sees it. It keeps an I/O error, because FFmpeg treats one as the end of the file."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._error: OSError | None = None

    def read(self, count: int) -> bytes:
        try:
            return self._file.read(count)
        except OSError as error:
            self._error = error
            return b""

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def complain(self) -> None:
        """Raise the OSError of an earlier read, if there was one."""
        if self._error is not None:
            raise self._error
