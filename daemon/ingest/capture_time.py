"""When an image was taken: by its EXIF tags, its file's name, or its file's mtime; nonsense is passed over."""

import re
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from functools import cache
from pathlib import PurePosixPath
from typing import Any

from configs.watch import WatchSettings
from storage.buffer.catalog_records import FileFact

EARLIEST = 631_152_000.0
"""1990-01-01 (Unix, seconds): clocks that were never set say 1970 or 1980."""
AHEAD_SECONDS = 86_400.0
"""How far in the future a time may lie: time zones and clocks that go wrong (seconds)."""
EXIF_TIMES = ((36867, 36881, 37521), (36868, 36882, 37522))
"""Tags of time, offset from UTC and fraction of a second: DateTimeOriginal, then DateTimeDigitized (EXIF 2.32)."""
DIGITS = {"Y": 4, "m": 2, "d": 2, "H": 2, "I": 2, "M": 2, "S": 2, "j": 3, "y": 2}
"""How many digits the numbers of strptime have in a file's name."""


def capture_time(watch: WatchSettings, file: FileFact, exif: Mapping[int, Any], *, recorded: str = "") -> float:
    """Unix time (seconds), from the first of `watch.advanced.capture_time` that gives a plausible one.

    `recorded`: what a video says in the place of EXIF (ISO 8601). Times without a zone are local. Where none is
    plausible, not even the mtime: now.
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
    """Whether an image can have been taken then: since 1990, and not more than a day ahead."""
    return EARLIEST <= unix <= time.time() + AHEAD_SECONDS


def exif_time(exif: Mapping[int, Any]) -> float | None:
    """The time that EXIF tags give (Unix, seconds); none when they give none that can be read."""
    for tag, offset, fraction in EXIF_TIMES:
        text = _text(exif.get(tag))
        zone = _text(exif.get(offset)).replace(" ", "")
        found = (zone and _parsed(f"{text}{zone}", "%Y:%m:%d %H:%M:%S%z")) or _parsed(text, "%Y:%m:%d %H:%M:%S")
        if found:
            part = _text(exif.get(fraction))
            return found + (float(f"0.{part}") if part.isascii() and part.isdigit() else 0.0)
    return None


def iso_time(text: str) -> float | None:
    """The time of an ISO 8601 text (Unix, seconds); none when it is none."""
    try:
        return datetime.fromisoformat(text.strip()).timestamp()
    except (ValueError, OverflowError):
        return None


def name_time(path: str, forms: tuple[str, ...]) -> float | None:
    """The first plausible time inside the name of a file (Unix, seconds), read by one of the strptime `forms`."""
    name = PurePosixPath(path).name
    for form in forms:
        for match in _pattern(form).finditer(name):
            found = _parsed(match[1], form)
            if found is not None and is_plausible(found):
                return found
    return None


def source_label(watch: WatchSettings, file: FileFact) -> str:
    """The source (camera) of a file: its first sub-folder; empty for files directly in the drop folder."""
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
    """Finds text that `form` may read, wherever it stands: not inside a longer number, but milliseconds may follow."""
    parts = re.split(r"%(.)", form)
    literals, codes = parts[::2], parts[1::2]
    body = re.escape(literals[0])
    for code, literal in zip(codes, literals[1:], strict=True):
        body += rf"\d{{{DIGITS[code]}}}" if code in DIGITS else r"\d{1,6}" if code == "f" else ".+?"
        body += re.escape(literal)
    return re.compile(rf"(?<!\d)(?=({body})(?!\d{{4}}))")
