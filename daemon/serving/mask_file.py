"""A mask as a file: its name, its picture, and the note inside it that says what it was made from and by which version.

The note is a text chunk of the PNG itself, so a mask and what is known about it cannot part, and a server that starts
again reads there what is done already.
"""

import io
import json
import struct
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from adapters.palette import colour_mask, overlay
from daemon.serving.api.answers import PNG_LEVEL, class_infos
from daemon.serving.batcher import Labels
from daemon.serving.versions.slots import Resident
from daemon.watch.arrival import Arrival

KEYWORD = "mfmd"
"""Keyword of the text chunk."""
HEAD_BYTES = 4096
"""Where the note stands: before the pixels, in the first bytes of the file."""
SIGNATURE = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True, slots=True)
class Note:
    """What a mask was made from, and how."""

    size: int
    """Size of the image file (bytes)."""
    mtime_ns: int
    """Its modification time (nanoseconds)."""
    kind: str
    """index, color or overlay."""
    version: int
    """Version that made it."""
    sha256: str
    """The weights of that version (hex)."""


def mask_path(folder: Path, name: str) -> Path:
    """Where the mask of the image `name` (relative, posix) belongs: `cam/a.jpg` -> `cam/a.jpg.png`.

    The image's own ending stays: `a.jpg` and `a.png` are two images and get two masks.
    """
    return folder / PurePosixPath(f"{name}.png")


def note_of(arrival: Arrival, kind: str, resident: Resident) -> Note:
    """The note of a mask that `resident` makes of this file now."""
    return Note(arrival.file.size, arrival.file.mtime_ns, kind, resident.version, resident.digest)


def is_current(note: Note | None, wanted: Note, *, again: bool) -> bool:
    """Whether a mask with `note` may stay where `wanted` is what a new one would say; `again`: the version counts."""
    if note is None or (note.size, note.mtime_ns, note.kind) != (wanted.size, wanted.mtime_ns, wanted.kind):
        return False
    return not again or (note.version, note.sha256) == (wanted.version, wanted.sha256)


def mask_bytes(labels: Labels, pixels: NDArray[np.uint8], resident: Resident, note: Note) -> bytes:
    """The PNG of `labels` `[h, w]`; `pixels` `[h, w, 3]` are the image, for an overlay."""
    classes, shown = class_infos(resident.manifest), labels
    if note.kind != "index":
        shown = colour_mask(labels, classes) if note.kind == "color" else overlay(pixels, labels, classes)
    chunks = PngInfo()
    chunks.add_text(KEYWORD, json.dumps(asdict(note)))
    stream = io.BytesIO()
    Image.fromarray(shown).save(stream, "PNG", compress_level=PNG_LEVEL, pnginfo=chunks)
    return stream.getvalue()


def read_note(path: Path) -> Note | None:
    """The note in a mask; none when there is no such file, or it is none of ours. Raises OSError."""
    try:
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
    except FileNotFoundError:
        return None
    text = _text_chunk(head)
    try:
        return None if text is None else Note(**json.loads(text))
    except (ValueError, TypeError):
        return None


def _text_chunk(head: bytes) -> bytes | None:
    """Content of our text chunk, found without decoding anything (PNG specification, 5.3: length, type, data, CRC)."""
    if not head.startswith(SIGNATURE):
        return None
    start, wanted = len(SIGNATURE), KEYWORD.encode() + b"\0"
    while start + 8 <= len(head):
        length, kind = struct.unpack_from(">I4s", head, start)
        data = head[start + 8 : start + 8 + length]
        if kind == b"tEXt" and data.startswith(wanted):
            return data.removeprefix(wanted)
        start += 12 + length
    return None
