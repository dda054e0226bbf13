"""Records of the videos of the drop folder: `videos.jsonl`, one line per step; the last line of a video counts.

One process writes it (`mfmd frames`); any number read it.
"""

import time
from pathlib import Path
from typing import Literal

from storage import durable
from storage.buffer.catalog_records import FileFact, FileRecord, as_text
from storage.durable.record import lines_of, parsed


class VideoRecord(FileRecord):
    """One line. A committed video with the reason `truncated` was decoded in part."""

    state: Literal["begun", "committed", "duplicate", "refused"]
    """committed: ingest has processed each frame; duplicate: the same video was committed under another name."""
    attempts: int = 0
    """Consecutive starts that were killed before they wrote a frame."""


class VideoRecords:
    """The records of one state directory, for their one writer."""

    def __init__(self, path: Path) -> None:
        """Read the existing records. Raises OSError."""
        self._path = path
        self._last = read_video_records(path)
        self._digests = {item.digest for item in self._last.values() if item.state in ("committed", "duplicate")}

    def of(self, file: FileFact) -> VideoRecord | None:
        """Return the last record of exactly this file (path, size, mtime)."""
        found = self._last.get(file.path)
        return found if found is not None and found.describes(file) else None

    def state_of(self, file: FileFact) -> VideoRecord | None:
        """Return the last record of exactly this file; None while its state is open."""
        found = self.of(file)
        return None if found is None or found.state == "begun" else found

    def has_digest(self, digest: str) -> bool:
        """Return whether a video of this content was turned into frames before."""
        return digest in self._digests

    def add(self, file: FileFact, state: str, detail: str = "", **more: object) -> VideoRecord:
        """Write the next record of a file, durably. Raises OSError, DurabilityLost."""
        values = {"path": file.path, "size": file.size, "mtime_ns": file.mtime_ns, "state": state, "at": time.time()}
        values["changed_ns"] = file.changed_ns
        record = VideoRecord.model_validate(values | more | {"detail": as_text(detail)})
        durable.append_line(self._path, record.model_dump_json())
        self._last[record.path] = record
        if record.state == "committed":
            self._digests.add(record.digest)
        return record


def read_video_records(path: Path) -> dict[str, VideoRecord]:
    """Return the last record of each video, by its path; incomplete lines of a crash are skipped."""
    return {record.path: record for record in parsed(lines_of(path), VideoRecord, path)}


def refused_videos(path: Path, reason: str | None = None) -> list[VideoRecord]:
    """Return refused videos, newest first; only those for `reason`, if given."""
    found = [item for item in read_video_records(path).values() if item.state == "refused"]
    found = [item for item in found if reason in (None, item.reason)]
    return sorted(found, key=lambda item: item.at, reverse=True)
