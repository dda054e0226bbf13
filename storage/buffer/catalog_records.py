"""Plain records of the catalog about files and frames, without SQLite."""

import os
from dataclasses import dataclass, field

from storage.durable.record import Record

SKIP_REASONS = ("near_duplicate", "too_close", "policy")
"""Stable codes, in the order in which they are checked; docs/reference/errors.md."""
LARGEST = 2**63 - 1
"""Largest integer of SQLite: as nanoseconds a moment of the year 2262; file systems keep later ones."""


@dataclass(frozen=True, slots=True)
class FileFact:
    """One file of the drop folder as it was when examined; a file that changes is another fact."""

    path: str
    """Relative to the drop folder, posix."""
    size: int
    """Bytes."""
    mtime_ns: int
    """Modification time (nanoseconds since the epoch), at most what SQLite can hold."""
    changed_ns: int | None = field(default=None, compare=False)
    """Change time of the inode (nanoseconds), which nobody can set; None when it is not known. It moves with content,
    name, mode and links, so a file of another change time is read again, and its digest decides."""


def fact_of(path: str, status: os.stat_result) -> FileFact:
    """Return the fact of the file `path` (relative, posix). Values fit the catalog, whatever the file system says."""
    name = os.fsencode(path).decode("utf-8", "backslashreplace")  # bytes that are no text are escaped in the catalog
    mtime_ns, changed_ns = (min(max(at, -LARGEST - 1), LARGEST) for at in (status.st_mtime_ns, status.st_ctime_ns))
    return FileFact(name, status.st_size, mtime_ns, changed_ns)


def as_text(detail: str) -> str:
    """Return a message so that it can be stored: it may quote names and bytes that are no text."""
    return detail.encode(errors="backslashreplace").decode()


class FileRecord(Record):
    """What became of one file."""

    path: str
    """Relative to the drop folder, posix."""
    size: int
    """Bytes."""
    mtime_ns: int
    """Modification time (nanoseconds since the epoch)."""
    state: str
    """committed, duplicate, refused or skipped."""
    reason: str = ""
    """Stable reason of a refusal, for example `truncated`."""
    detail: str = ""
    """What was wrong with it."""
    digest: str | None = None
    """Hex SHA-256 of the file; None when it was not read to its end."""
    at: float
    """Unix time (seconds)."""
    changed_ns: int | None = None
    """Change time of the inode (nanoseconds since the epoch); None in older records."""

    def describes(self, file: FileFact) -> bool:
        """Return whether this is the record of exactly this file: also its inode has not changed since."""
        if self.file != file:
            return False
        if file.changed_ns is None or self.changed_ns is None:
            return file.changed_ns is None or file.changed_ns <= self.at * 1e9
        return self.changed_ns == file.changed_ns

    @property
    def file(self) -> FileFact:
        """The file as it was then."""
        return FileFact(self.path, self.size, self.mtime_ns, self.changed_ns)


@dataclass(frozen=True, slots=True)
class FrameRecord:
    """One committed frame."""

    id: int
    """Ascending in commit order, never reused."""
    slot: int
    """Index into the zarr array."""
    digest: str
    """Hex SHA-256 of the file it came from."""
    name: str
    """Path of that file, relative to the drop folder."""
    captured_at: float
    """Unix time (seconds)."""
    committed_at: float
    """Unix time (seconds)."""
    source_height: int
    """Height of the image in the file (pixels)."""
    source_width: int
    """Width of the image in the file (pixels)."""
    valid_height: int
    """Rows of the frame that hold image (pixels)."""
    valid_width: int
    """Columns of the frame that hold image (pixels)."""
    crc32: int
    """CRC-32 of the frame's pixels."""
    holdout: bool
    """Held out: rounds never train on it, the gate scores on it."""
    source: str = ""
    """Source label (camera) it came from; empty when there is none."""
    phash: str = ""
    """Perceptual hash of the image, 16 hex digits; empty for frames that are older than the column."""
    resample: str = ""
    """Filter that scaled it; empty for an image that was not scaled, and for frames that are older than the column."""


@dataclass(frozen=True, slots=True)
class CatalogCounts:
    """Totals of the catalog: frames in the buffer, frames ever committed and evicted, files by reason."""

    frames: int
    holdout: int
    committed_total: int
    evicted_total: int
    duplicates: int
    """Files of the drop folder whose content was committed before."""
    refused: dict[str, int]
    skipped: dict[str, int]
    last_committed_at: float | None
    """Unix time of the newest frame in the buffer (seconds)."""
