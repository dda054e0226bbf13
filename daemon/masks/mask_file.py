"""A mask as a file: its name, and the note inside it that says which file and which version it was made from.

The note is a text chunk of the PNG itself. A mask and what is known about it therefore stay together, and a process
that restarts reads there what is already done.
"""

import json
from pathlib import Path
from typing import NamedTuple

from configs.errors import ConfigError
from configs.settings import Settings
from daemon.watch.arrival import Arrival
from storage.media.own_png import mark_of, with_mark

HASH_DIGITS = 12
"""Hex digits of a version's SHA-256 that a note holds, as many as the answer's header has."""


class Version(NamedTuple):
    """The version that answers: its number, and the first digits of its weights' SHA-256 (hex)."""

    number: int
    sha256: str


class Note(NamedTuple):
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
    """The first digits of the SHA-256 of that version's weights (hex)."""
    changed_ns: int = 0
    """Time at which the system saw the image file change (nanoseconds); 0 in a mask of an older mfmd."""

    def meets(self, wanted: "Note", *, again: bool) -> bool:
        """Return whether a mask with this note is what `wanted` asks for; `again`: the version counts."""
        compared = 5 if again else 3
        return self[:compared] == wanted[:compared] and self.changed_ns in (0, wanted.changed_ns)


def mask_path(folder: Path, name: str) -> Path:
    """Return the place of the mask of the image `name` (relative, posix): `cam/a.jpg` -> `cam/a.jpg.png`.

    The image's own ending stays: `a.jpg` and `a.png` are two images and get two masks.
    """
    return folder / f"{name}.png"


def check_masks(settings: Settings) -> None:
    """Raise ConfigError when images leave before they can get a mask."""
    if settings.masks.folder is not None and settings.watch.after_commit != "keep":
        raise ConfigError(
            f"masks.folder: watch.after_commit is {settings.watch.after_commit}, so images may be gone before their "
            "mask is made; set it to keep, or ask the inference plane for masks"
        )


def note_of(arrival: Arrival, kind: str, version: Version) -> Note:
    """Return the note of a mask that `version` makes of this file now."""
    file = arrival.file
    return Note(file.size, file.mtime_ns, kind, version.number, version.sha256[:HASH_DIGITS], file.changed_ns or 0)


def with_note(png: bytes, note: Note) -> bytes:
    """Put the note into a PNG, as its mark."""
    return with_mark(png, json.dumps(note._asdict()))


def read_note(path: Path) -> Note | None:
    """Read the note in a mask; None when there is no such file, it has no note or it cannot be read."""
    try:
        return Note(**json.loads(mark_of(path) or ""))
    except (ValueError, TypeError):
        return None
