"""The promise as an oracle: every file in the drop folder is committed exactly once, or refused with a recorded reason,
or still waiting in the folder; and a committed frame is whole until it is evicted.

It believes nothing that the daemon says about itself: it hashes the files that lie in the folder, reads the catalog's
tables with SQL, and the frames' pixels from the zarr array. It may run while the daemon does, as long as nothing moves.
"""

import hashlib
import os
import sqlite3
import stat
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from storage.buffer.pixel_array import PixelArray
from storage.errors import CorruptBuffer
from storage.layout import StateLayout
from storage.media.images import crc32_of


@dataclass(slots=True)
class Kept:
    """What became of the dropped files, by path relative to the folder; each path stands in one of these."""

    committed: set[str] = field(default_factory=set)
    duplicate: set[str] = field(default_factory=set)
    refused: set[str] = field(default_factory=set)
    skipped: set[str] = field(default_factory=set)
    waiting: set[str] = field(default_factory=set)


def check_promise(state: Path, folder: Path, dropped: Mapping[str, set[str]]) -> Kept:
    """Raises AssertionError, naming every file that broke the promise, or tells what became of each.

    `dropped`: relative path as the file system gives it -> hex SHA-256 of every version that was written whole there.
    A file that the test itself took away again before the daemon could see it must not stand there.
    """
    rows, frames, digests, sequence = _read(StateLayout(state).catalog)
    broken = list(_broken_frames(StateLayout(state), frames, digests, sequence, dropped))
    kept = Kept()
    for name in dropped:
        try:
            getattr(kept, _fate(folder, name, rows.get(_storable(name)), set(digests), dropped[name])).add(name)
        except _Broken as error:
            broken.append(f"{name!r}: {error}")
    assert not broken, f"the promise is broken {len(broken)} times:\n" + "\n".join(broken[:50])
    return kept


class _Broken(Exception):
    """One file's part of the promise."""


Row = dict[str, Any]


def _read(catalog: Path) -> tuple[dict[str, Row], list[Row], dict[str, int], int]:
    """Rows of `files` by path, rows of `frames`, digest -> frame ever committed, the highest frame id ever given."""
    with closing(sqlite3.connect(f"{catalog.absolute().as_uri()}?mode=ro", uri=True)) as connection:
        connection.row_factory = sqlite3.Row
        connection.execute("BEGIN")  # all of one moment
        files = {row["path"]: dict(row) for row in connection.execute("SELECT * FROM files")}
        frames = [dict(row) for row in connection.execute("SELECT * FROM frames ORDER BY id")]
        digests = {row["digest"]: row["frame"] for row in connection.execute("SELECT * FROM digests")}
        given = connection.execute("SELECT COALESCE(MAX(seq), 0) FROM sqlite_sequence WHERE name = 'frames'")
        return files, frames, digests, given.fetchone()[0]


def _broken_frames(
    layout: StateLayout, frames: list[Row], digests: dict[str, int], given: int, dropped: Mapping[str, set[str]]
) -> Iterator[str]:
    """Frames that nobody dropped, were committed twice, or are not what was committed."""
    known = set().union(*dropped.values())
    yield from (f"frame {digests[digest]}: nobody dropped a whole {digest}" for digest in digests.keys() - known)
    if not len(digests) == len(set(digests.values())) == given:
        yield f"{given} frames were committed, of {len(digests)} contents: one was committed twice, or none knows it"
    array = PixelArray(layout.frames_zarr, "frames") if frames else None
    for frame in frames:
        label = f"frame {frame['id']} ({frame['name']})"
        if digests.get(frame["digest"]) != frame["id"]:
            yield f"{label}: not the frame that its content was committed as"
        assert array is not None
        try:
            if crc32_of(array.read(frame["slot"])) != frame["crc32"]:
                yield f"{label}: its pixels are not those that were committed"
        except CorruptBuffer as error:
            yield f"{label}: its pixels cannot be read: {error}"


def _fate(folder: Path, name: str, row: Row | None, committed: set[str], versions: set[str]) -> str:
    """The field of `Kept` a file belongs to. Raises _Broken."""
    found = _content(folder, name)
    if row is None:
        if found is None:
            raise _Broken("gone from the folder, and nothing is known of it")
        return "waiting"
    if row["state"] in ("refused", "skipped"):
        if not row["reason"]:
            raise _Broken(f"{row['state']} without a reason")
    elif row["digest"] not in committed:
        raise _Broken(f"called {row['state']}, but no frame of its content was ever committed")
    if found is None:
        if row["digest"] not in (*versions, None):
            raise _Broken("gone from the folder, and what was dealt with was no version of it")
        return str(row["state"])
    size, mtime_ns, digest = found
    if (row["size"], row["mtime_ns"]) != (size, min(max(mtime_ns, -(2**63)), 2**63 - 1)):  # what SQLite can hold
        return "waiting"  # it changed since it was dealt with
    if row["digest"] not in (digest, None):
        raise _Broken(f"called {row['state']}, but for another content than lies in the folder")
    return str(row["state"])


def _content(folder: Path, name: str) -> tuple[int, int, str] | None:
    """Size, mtime and digest of a file; a link that leads out of the folder stands for itself. None: it is gone."""
    path = folder / name
    try:
        status = path.lstat()
        target = Path(os.path.realpath(path))
        if stat.S_ISLNK(status.st_mode):
            if not (target.is_relative_to(os.path.realpath(folder)) and target.is_file()):
                return status.st_size, status.st_mtime_ns, ""
            status = path.stat()
        return status.st_size, status.st_mtime_ns, hashlib.sha256(path.read_bytes()).hexdigest()
    except (FileNotFoundError, NotADirectoryError):
        return None


def _storable(name: str) -> str:
    """The catalog's spelling of a name: bytes that are no UTF-8 stand escaped."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")
