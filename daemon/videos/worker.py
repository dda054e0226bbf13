"""`mfmd frames`: turns the videos of the drop folder into image files beside them, one video at a time.

Ingest takes these like any others, each is removed once the catalog has it, and the catalog shows the progress: after a
kill the video is decoded from its start again, and frames whose name the catalog has are skipped.
"""

import hashlib
import os
import time
from collections.abc import Generator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from configs.folders import overlap
from configs.settings import Settings
from daemon.ingest.originals import Originals
from daemon.runtime.heartbeat import beating
from daemon.runtime.logs import Lasting, get_logger
from daemon.runtime.signals import stop_event
from daemon.watch.arrival import Arrival, FileChanged, StabilityQueue, check_still, find_arrival, open_arrival
from daemon.watch.scan import RESCAN_SHARE, FolderScan, missing_marker
from storage.buffer.catalog import Catalog
from storage.buffer.catalog_records import FileFact
from storage.buffer.video_records import VideoRecords
from storage.durable.digest import short
from storage.errors import DurabilityLost, RefusedImage, StorageError
from storage.layout import StateLayout
from storage.media import can_read_videos

if TYPE_CHECKING:  # decoders are loaded for the first video: this process runs beside every daemon
    from daemon.videos.frame_files import FrameFiles

NICE = 10
POLL_SECONDS = 0.1
"""Interval at which the worker checks whether ingest has processed the written frames (seconds)."""
PAUSE_SECONDS = 5.0
"""Pause after the disk or the catalog refused something (seconds)."""
AHEAD = 2
"""Frames that may wait for ingest, in commit groups."""
ATTEMPTS = 5
"""A video is refused when this many processes in a row ended before they wrote a frame of it."""
HASHED_AT_ONCE = 1 << 20
"""Bytes that are hashed between two checks of the stop signal."""

log = get_logger(__name__)


def watch_videos(settings: Settings) -> int:
    """Turn the videos of the drop folder into image files until SIGTERM or SIGINT; 0 after a clean stop."""
    os.nice(NICE)
    with (
        closing(VideoWorker(settings)) as worker,
        stop_event() as stop,
        beating(StateLayout(settings.state), "frames") as moved,
    ):
        lasting = Lasting()
        while not stop.is_set():
            moved()
            try:
                pause = worker.step()
            except DurabilityLost:
                raise
            except Exception as error:  # the video of that moment waits, the others go on
                pause = PAUSE_SECONDS
                expected = isinstance(error, OSError | StorageError | MemoryError)
                if lasting.due(str(error)):
                    log.warning("videos_waiting", error=str(error), retry_in=pause, exc_info=not expected)
            stop.wait(pause)
    return 0


class VideoWorker:
    """Does a little of the work with each `step`. Belongs to one thread."""

    def __init__(self, settings: Settings) -> None:
        self._settings, self._watch, self._videos = settings, settings.watch, settings.videos
        self._layout = StateLayout(settings.state)
        self._catalog: Catalog | None = None
        self._records = VideoRecords(self._layout.videos)
        self._scan = FolderScan(settings.watch, videos=True)
        self._queue = StabilityQueue(settings.watch.stability_seconds)
        self._originals = Originals(settings.watch, self._records.state_of, self._scan, lambda: overlap(settings))
        self._begun: set[FileFact] = set()
        self._next_scan = 0.0
        self._failures = 0
        self._video: Arrival
        self._work: Generator[float, None, None] | None = None

    def step(self) -> float:
        """Continue the current video, or look for one; return the seconds until the next call.

        Raises OSError or StorageError when the disk or the catalog refuses; the video is then retried later.
        """
        if not self._open():
            return self._watch.advanced.rescan_seconds
        if self._work is None and not self._take():
            return self._pause()
        assert self._work is not None
        try:
            return next(self._work)
        except StopIteration:
            self._work = None
            return 0.0
        except BaseException:
            self._work = None
            self._queue.postpone(self._relative(self._video.path), self._failures + 1, time.monotonic())
            raise

    def close(self) -> None:
        """Release everything. The next process starts the current video again."""
        if self._catalog is not None:
            self._catalog.close()
        if self._work is not None:
            self._work.close()
            self._absolve(self._video.file)

    def _open(self) -> bool:
        if not self._watch.folder.is_dir() or missing_marker(self._watch) or overlap(self._settings):
            return False
        if self._catalog is None and self._layout.catalog.exists():
            self._catalog = Catalog.open(self._layout.catalog, writable=False)
        return self._catalog is not None

    def _take(self) -> bool:
        now = time.monotonic()
        if now >= self._next_scan:
            for name in self._scan.names(_warn):
                if name not in self._queue and (video := self._see(name)) and not self._is_known(video.file):
                    self._queue.note(name, video, now)
            took = time.monotonic() - now
            self._next_scan = now + max(self._watch.advanced.rescan_seconds, RESCAN_SHARE * took)
        self._originals.sweep()
        found = next(self._queue.take(self._see, now), None)
        if found is None:
            return False
        _, self._video, self._failures = found
        self._work = self._turn(self._video)
        return True

    def _pause(self) -> float:
        now = time.monotonic()
        waits = [self._next_scan - now, self._queue.next_due(now)]
        return max(POLL_SECONDS, min(seconds for seconds in waits if seconds is not None))

    def _see(self, name: str) -> Arrival | None:
        try:
            return find_arrival(self._watch.folder, name)
        except OSError as error:
            _warn(name, error)
            return None

    def _is_known(self, file: FileFact) -> bool:
        """Return whether a video was processed; the catalog has those of an older mfmd."""
        record = self._records.of(file)
        if record is None:
            return self._catalog is not None and self._catalog.known(file)
        return record.state != "begun" and not (record.reason == "needs_extra" and can_read_videos())

    def _turn(self, video: Arrival) -> Generator[float, None, None]:
        """Turn a video into frames in the buffer; yields after each piece of work how long to wait (seconds)."""
        from daemon.videos.frame_files import FrameFiles, check_size

        digest = ""
        try:
            self._begin(video.file)
            check_size(video.file.size, self._videos)
            with open_arrival(self._watch.folder, video) as file:
                digest = yield from _hash(file)
                check_still(self._watch.folder, video)
                if self._records.has_digest(digest):
                    self._finish(video, "duplicate", digest)
                    return
                frames = FrameFiles(file, video.file, digest, self._videos, self._watch)
                yield from self._write(video, frames)
            self._finish(video, "committed", digest, "truncated" if frames.damage else "", frames.damage)
        except RefusedImage as error:
            self._finish(video, "refused", digest, error.reason, str(error).removeprefix("video: "))
        except FileChanged as error:  # the next scan finds it as it is then
            log.info("video_changed", file=video.file.path, digest=short(digest), error=str(error))
        except (OSError, StorageError, MemoryError):
            raise
        except Exception as error:  # a bug in a decoder costs one video
            log.error("decoder_failed", file=video.file.path, digest=short(digest), error=str(error), exc_info=True)
            what = f"the decoder failed: {type(error).__name__}: {error}"
            self._finish(video, "refused", digest, "not_an_image", what)

    def _begin(self, file: FileFact) -> None:
        """Count this process as one that may die of the video. Raises RefusedImage after too many."""
        if file in self._begun:
            return
        record = self._records.of(file)
        attempts = 0 if record is None else record.attempts
        if attempts >= ATTEMPTS:
            raise RefusedImage("not_an_image", f"{attempts} processes crashed while they decoded it")
        self._records.add(file, "begun", attempts=attempts + 1)
        self._begun.add(file)

    def _write(self, video: Arrival, frames: "FrameFiles") -> Generator[float, None, None]:
        """Write what the catalog lacks, a few files ahead of ingest; ends when ingest has processed all."""
        from daemon.videos.frame_files import write_frame

        assert self._catalog is not None
        most, waiting = AHEAD * self._watch.advanced.group_frames, list[Path]()
        for frame in frames:
            yield 0.0
            if frame is None:
                continue
            path = video.path.with_name(frame.name)
            if not path.exists():
                if self._catalog.knows_path(self._relative(path)):
                    continue
                yield from self._wait(waiting, most - 1)
                check_still(self._watch.folder, video)  # these are pixels of what was hashed
                write_frame(frame, path, self._watch)
                self._absolve(video.file)
            waiting.append(path)
        yield from self._wait(waiting, 0)

    def _wait(self, waiting: list[Path], most: int) -> Generator[float, None, None]:
        """Wait until ingest has processed all but `most` of the files; they are removed from the list."""
        while len(waiting) > most:
            waiting[:] = [path for path in waiting if not self._is_dealt_with(path)]
            if len(waiting) > most:
                yield POLL_SECONDS

    def _is_dealt_with(self, path: Path) -> bool:
        """Return whether the catalog has a frame's file; one that ingest leaves in place is removed."""
        assert self._catalog is not None
        seen = find_arrival(self._watch.folder, self._relative(path))
        state = None if seen is None else self._catalog.state_of(seen.file)
        if seen is not None and state is not None and not self._originals.disposes_of(state):
            path.unlink(missing_ok=True)
        return seen is None or state is not None

    def _relative(self, path: Path) -> str:
        return path.relative_to(self._watch.folder).as_posix()

    def _absolve(self, file: FileFact) -> None:
        """Note that a frame was written: this process did not die of the video."""
        record = self._records.of(file)
        if record is not None and record.attempts:
            self._records.add(file, "begun")

    def _finish(self, video: Arrival, state: str, digest: str, reason: str = "", detail: str = "") -> None:
        self._records.add(video.file, state, digest=digest or None, reason=reason, detail=detail)
        write = log.warning if reason else log.info
        write(f"video_{state}", file=video.file.path, digest=short(digest), reason=reason, detail=detail)
        self._originals.dispose(video)


def _hash(file: BinaryIO) -> Generator[float, None, str]:
    """Return the hex SHA-256 of an open file, read in pieces."""
    seen = hashlib.sha256()
    while data := file.read(HASHED_AT_ONCE):
        seen.update(data)
        yield 0.0
    return seen.hexdigest()


def _warn(name: str, error: OSError) -> None:
    log.warning("path_unreadable", name=name, error=str(error))
