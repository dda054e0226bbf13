"""Turn a stable file into a frame that can be committed, or into the reason why not. Runs in worker threads.

EXIF tags, the file's name, or its mtime give the capture time; implausible times are ignored.
"""

import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cache
from pathlib import PurePosixPath
from typing import Any, Literal

from configs.settings import Settings
from configs.watch import WatchSettings
from daemon.runtime.logs import get_logger
from daemon.watch.arrival import Arrival, FileChanged, read_arrival
from storage.buffer.catalog_records import FileFact
from storage.buffer.frames import NewFrame, Packed
from storage.durable.digest import digest_of, short
from storage.errors import RefusedImage, StorageError
from storage.media.bounded import DecodeLimits, decode_bounded
from storage.media.images import Fit, FittedFrame, fit_frame
from storage.media.perceptual_hash import perceptual_hash

EARLIEST = 631_152_000.0
"""1990-01-01 (Unix, seconds): clocks that were never set give 1970 or 1980."""
AHEAD_SECONDS = 86_400.0
"""How far in the future a time may lie, because of time zones and wrong clocks (seconds)."""
EXIF_TIMES = ((36867, 36881, 37521), (36868, 36882, 37522))
"""Tags of time, offset from UTC and fraction of a second: DateTimeOriginal, then DateTimeDigitized (EXIF 2.32)."""
UNEXPECTED = "unexpected"
"""Reason of a refusal that is a fault of mfmd."""
DIGITS = {"Y": 4, "m": 2, "d": 2, "H": 2, "I": 2, "M": 2, "S": 2, "j": 3, "y": 2}
"""Number of digits of strptime's numbers in a file's name."""

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Decoded:
    """A frame for the buffer."""

    arrival: Arrival
    frame: NewFrame


@dataclass(frozen=True, slots=True)
class Settled:
    """A file of which no frame is made, until it changes."""

    arrival: Arrival
    outcome: Literal["duplicate", "skipped", "rejected"]
    """duplicate: its content was committed before; skipped: admission does not want it; rejected: it is unusable."""
    digest: str = ""
    """Of its content; empty when it could not be read."""
    reason: str = ""
    detail: str = ""

    @property
    def facts(self) -> dict[str, str]:
        """Return what the log says about the file."""
        file, digest = self.arrival.file.path, short(self.digest)
        return {"file": file, "digest": digest, "reason": self.reason, "detail": self.detail}


@dataclass(frozen=True, slots=True)
class RetryLater:
    """A file that could not be read now."""

    arrival: Arrival
    error: str


Outcome = Decoded | Settled | RetryLater


def is_of_file(error: Exception) -> bool:
    """Return whether handling a file failed because of the file: not of the disk, the catalog or the memory."""
    return not isinstance(error, OSError | StorageError | MemoryError)


def refuse_failed(arrival: Arrival, error: Exception, digest: str = "") -> Settled:
    """Return the refusal of a file whose handling raised what nobody expected: it costs this file, not ingest."""
    log.error("file_failed", file=arrival.file.path, digest=short(digest), error=str(error), exc_info=error)
    return Settled(arrival, "rejected", digest, UNEXPECTED, f"handling it failed: {type(error).__name__}: {error}")


class Decoder:
    """Reads, hashes, decodes and fits files."""

    def __init__(
        self, settings: Settings, is_stored: Callable[[str], bool], pack: Callable[[FittedFrame], Packed] | None
    ) -> None:
        """Prepare it: `is_stored` knows digests that were ever committed; `pack` makes `NewFrame.packed`, unless None.

        Both are called from worker threads.
        """
        self._settings, self._watch, self._buffer = settings, settings.watch, settings.buffer
        self._is_stored, self._pack = is_stored, pack
        self._hashing = settings.admission.near_duplicate_bits is not None  # half as costly as decoding

    def decode(self, arrival: Arrival) -> Outcome:
        """Decode one file. Never raises for a fault of the file."""
        try:
            data = read_arrival(self._watch.folder, arrival, self._watch.max_file_bytes)
        except RefusedImage as error:
            return Settled(arrival, "rejected", "", error.reason, str(error))
        except (FileChanged, OSError, MemoryError) as error:
            return RetryLater(arrival, f"{type(error).__name__}: {error}")
        except Exception as error:  # noqa: BLE001 - logged there: it costs one file, not ingest
            return refuse_failed(arrival, error)
        digest = digest_of(data)
        if self._is_stored(digest):
            return Settled(arrival, "duplicate", digest)
        return self._decode(arrival, data, digest)

    def _decode(self, arrival: Arrival, data: bytes, digest: str) -> Outcome:
        try:
            frame = self._frame(arrival, data, digest)
        except RefusedImage as error:
            return Settled(arrival, "rejected", digest, error.reason, str(error).removeprefix("image: "))
        except (OSError, MemoryError) as error:  # not what a decoder says of damage: no memory or process just then
            return RetryLater(arrival, f"{type(error).__name__}: {error}")
        except Exception as error:  # a bug in a decoder must cost one file, not ingest
            facts = {"file": arrival.file.path, "digest": short(digest), "error": str(error)}
            log.error("decoder_failed", **facts, exc_info=True)
            what = f"the decoder failed: {type(error).__name__}: {error}"
            return Settled(arrival, "rejected", digest, "not_an_image", what)
        return Decoded(arrival, frame)

    def _frame(self, arrival: Arrival, data: bytes, digest: str) -> NewFrame:
        watch = self._watch
        photo = decode_bounded(data, replace(DecodeLimits.of(watch), max_aspect=watch.advanced.max_aspect))
        fitted = fit_frame(photo.pixels, self._buffer.height, self._buffer.width, Fit.of(self._buffer))
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


def capture_time(watch: WatchSettings, file: FileFact, exif: Mapping[int, Any], *, recorded: str = "") -> float:
    """Return the Unix time (seconds) of the first plausible source in `watch.advanced.capture_time`.

    `recorded`: a video's time in place of EXIF (ISO 8601). Times without a zone are local. When none is plausible, not
    even the mtime, it is now.
    """
    sources: dict[str, Callable[[], float | None]] = {
        "exif": lambda: iso_time(recorded) if recorded else exif_time(exif),
        "name": lambda: name_time(file.path, watch.advanced.capture_name),
        "mtime": lambda: file.mtime_ns / 1e9,
    }
    for source in (*watch.advanced.capture_time, "mtime"):
        found = sources[source]()
        if found is not None and is_plausible(found):
            return found
    return time.time()


def is_plausible(unix: float) -> bool:
    """Return whether the time is since 1990 and at most a day ahead."""
    return EARLIEST <= unix <= time.time() + AHEAD_SECONDS


def exif_time(exif: Mapping[int, Any]) -> float | None:
    """Return the time of EXIF tags (Unix, seconds); None without a readable one."""
    for tag, offset, fraction in EXIF_TIMES:
        text = _text(exif.get(tag))
        zone = _text(exif.get(offset)).replace(" ", "")
        found = (zone and _parsed(f"{text}{zone}", "%Y:%m:%d %H:%M:%S%z")) or _parsed(text, "%Y:%m:%d %H:%M:%S")
        if found:
            part = _text(exif.get(fraction))
            return found + (float(f"0.{part}") if part.isascii() and part.isdigit() else 0.0)
    return None


def iso_time(text: str) -> float | None:
    """Return the time of an ISO 8601 text (Unix, seconds); None when it is invalid."""
    try:
        return datetime.fromisoformat(text.strip()).timestamp()
    except (ValueError, OverflowError):
        return None


def name_time(path: str, forms: tuple[str, ...]) -> float | None:
    """Return the first plausible time inside the name of a file (Unix, seconds), by one of the strptime `forms`."""
    name = PurePosixPath(path).name
    for form in forms:
        for match in _pattern(form).finditer(name):
            found = _parsed(match[1], form)
            if found is not None and is_plausible(found):
                return found
    return None


def source_label(watch: WatchSettings, file: FileFact) -> str:
    """Return the source (camera) of a file: its first sub-folder; empty for files directly in the drop folder."""
    parts = PurePosixPath(file.path).parts
    return parts[0] if watch.advanced.source_label == "folder" and len(parts) > 1 else ""


def _text(value: object) -> str:
    return value.strip(" \0") if isinstance(value, str) else ""


def _parsed(text: str, form: str) -> float | None:
    try:
        return datetime.strptime(text, form).timestamp()
    except (ValueError, OverflowError):
        return None  # zero dates and the like


@cache
def _pattern(form: str) -> re.Pattern[str]:
    """Return a pattern for text that `form` may read: not inside a longer number, but milliseconds may follow."""
    parts = re.split(r"%(.)", form)
    literals, codes = parts[::2], parts[1::2]
    body = re.escape(literals[0])
    for code, literal in zip(codes, literals[1:], strict=True):
        body += rf"\d{{{DIGITS[code]}}}" if code in DIGITS else r"\d{1,6}" if code == "f" else ".+?"
        body += re.escape(literal)
    return re.compile(rf"(?<!\d)(?=({body})(?!\d{{4}}))")
