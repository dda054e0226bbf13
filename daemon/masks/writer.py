"""`mfmd masks`: write a mask file for each image of the drop folder, for users without HTTP.

The process is a client of the inference plane. It asks for one image at a time at low priority; a full queue answers
503, and the process waits as long as the plane says. It never deletes a mask: not when its image is removed, not when
the drop folder vanishes.
"""

import errno
import os
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing

from configs.errors import ConfigError
from configs.folders import overlap
from configs.settings import Settings
from daemon.masks.mask_file import Note, check_masks, mask_path, note_of, with_note
from daemon.masks.plane_client import ImageFailed, PlaneClient, PlaneUnavailable
from daemon.masks.queue import Due, MaskQueue
from daemon.masks.report import MaskReport
from daemon.runtime.heartbeat import beating
from daemon.runtime.logs import get_logger
from daemon.runtime.signals import stop_event
from daemon.watch.arrival import Arrival, FileChanged, read_arrival
from storage import durable
from storage.buffer.catalog_records import FileFact
from storage.errors import AlreadyRunning, DurabilityLost, RefusedImage, StorageError
from storage.layout import StateLayout
from storage.media.own_png import may_replace

LOCK = ".mfmd-masks.lock"
"""File in the folder of masks; of several processes on one folder one writes, the others stand by."""
LIMIT = 256
"""Images that are made after one walk: the next one finds what has come in, which goes first."""
WALK_SHARE = 10.0
"""A walk waits at least this many times its own duration, so that a huge folder costs a bounded share of a core."""
REPORT_SECONDS = 1.0
"""Shortest time between two writes of `run/masks.json` (seconds)."""
NO_SUCH_NAME = (errno.ENAMETOOLONG, errno.EILSEQ, errno.EINVAL, errno.ENOTDIR, errno.EISDIR, errno.EEXIST)
"""Errors that are about one mask's name, not about the disk."""
ATTEMPTS = 3
"""After so many requests that the plane did not survive or answer, an image counts as failed."""
NICENESS = 10

log = get_logger(__name__)


def run_masks(settings: Settings) -> int:
    """Write masks until SIGTERM or SIGINT; return the exit status.

    An fsync error ends it with status 1: what was written may be lost. Raises ConfigError when `masks.folder` is not
    set or lies in the wrong place.
    """
    if settings.masks.folder is None:
        raise ConfigError("masks.folder is not set; set it to a folder for the masks")
    check_masks(settings)
    os.nice(NICENESS)
    beats = beating(StateLayout(settings.state), "masks")
    with stop_event() as stop, closing(PlaneClient(settings)) as plane, beats as moved:
        writer = MaskWriter(settings, plane, stop, moved)
        try:
            writer.run()
        except DurabilityLost as error:
            log.critical("masks_stopped", error=str(error))
            return 1
    return 0


class MaskWriter:
    """Walks the drop folder and writes what is missing."""

    def __init__(
        self, settings: Settings, plane: PlaneClient, stop: threading.Event, moved: Callable[[], None] = lambda: None
    ) -> None:
        """`settings.masks.folder` must be set; `moved` is called whenever there was progress."""
        assert settings.masks.folder is not None
        self._settings, self._place = settings, ""
        self._watch, self._masks, self._folder = settings.watch, settings.masks, settings.masks.folder
        self._plane, self._stop, self._moved = plane, stop, moved
        self._path = StateLayout(settings.state).run_file("masks")
        self._reported, self._trouble = 0.0, ""
        self._queue = MaskQueue(self._watch, self._masks, self._folder)
        self._unanswered: Counter[str] = Counter()
        self._unread: set[FileFact] = set()
        self.report = MaskReport()

    def run(self) -> None:
        """Write until stopped. Raises DurabilityLost."""
        try:
            while not self._stop.is_set():
                self._try_to_write()
                self._update_report(active=False)
                self._stop.wait(self._watch.advanced.rescan_seconds)
        finally:
            self._update_report(active=False, folder_present=False)

    def _try_to_write(self) -> None:
        """Return when the folder cannot be used now, belongs to another process, or a link to it was turned."""
        try:
            self._place = os.path.realpath(self._folder)
            if self._turned():
                return
            durable.make_directory(self._folder, shared=True)
            with durable.exclusive_lock(self._folder / LOCK, busy="held by process {}".format):
                for path in [self._folder, *(item for item in self._folder.rglob("*") if item.is_dir())]:
                    durable.remove_partials(path, shared=True)
                self._update_report(active=True)
                while not self._stop.is_set() and not self._turned():
                    self._stop.wait(self._pass())
        except AlreadyRunning:
            self._log_once("another process writes masks here")
        except OSError as error:
            self._update_report(failed=self.report.failed + 1)
            self._log_once(f"masks cannot be written to {self._folder}: {error.strerror or error}; retrying")

    def _turned(self) -> bool:
        """Return whether the folder is another one by now, or folders overlap: no mask may be written there."""
        if overlapping := overlap(self._settings):
            self._log_once(f"nothing is written, because of where a link leads now: {overlapping}")
        return bool(overlapping) or os.path.realpath(self._folder) != self._place

    def _pass(self) -> float:
        """Walk once and write what is due; return the seconds until the next walk.

        Raises OSError when a mask cannot be written, DurabilityLost.
        """
        rescan = self._watch.advanced.rescan_seconds
        try:
            version, began = self._plane.version(), time.monotonic()
            due, moving = self._queue.walk(version)
        except PlaneUnavailable as error:
            self._log_once(str(error))
            return error.retry_seconds
        except OSError as error:
            self._update_report(folder_present=False)
            self._log_once(f"{self._watch.folder} cannot be listed: {error.strerror or error}; waiting for it")
            return rescan
        self._update_report(folder_present=True, pending=len(due) + moving)
        self._log_once("")
        self._unread &= {image.arrival.file for image in due}
        least = WALK_SHARE * (time.monotonic() - began)
        pause = max(least, min(rescan, self._watch.stability_seconds) if moving else rescan)
        for image in due[:LIMIT]:
            if self._stop.is_set() or time.monotonic() - began > pause or self._turned():
                return 0.0  # a new walk finds what has come in since, which goes first
            try:
                self._write_mask(image)
            except PlaneUnavailable as error:
                log.debug("masks_waiting", reason=str(error))
                return error.retry_seconds
            except (OSError, StorageError, MemoryError):
                raise
            except Exception as error:  # noqa: BLE001 - it costs the mask of this image
                self._skip(image, error)
        return max(0.0, began + (least if len(due) > LIMIT else pause) - time.monotonic())

    def _write_mask(self, image: Due) -> None:
        """Make and write one mask. Raises OSError when the disk refuses it, DurabilityLost, PlaneUnavailable."""
        path = mask_path(self._folder, image.name)
        if not may_replace(path):
            self._skip(image, FileExistsError(f"{path} exists, and mfmd did not make it; move it elsewhere"))
            return
        answer = self._ask(image)
        if answer is None:
            return
        png, note = answer
        try:
            durable.make_directory(path.parent, shared=True)
            durable.write_bytes(path, with_note(png, note), shared=True)
        except OSError as error:
            if error.errno not in NO_SUCH_NAME:
                self._queue.put_last(image.name)
                raise
            self._skip(image, error)
            return
        self._queue.done(image.name, note)
        report = self.report
        self._update_report(written=report.written + 1, pending=max(0, report.pending - 1), last_written=time.time())

    def _ask(self, image: Due) -> tuple[bytes, Note] | None:
        """Return the mask and its note; None when this file gives none now."""
        name, arrival, kind = image.name, image.arrival, self._masks.kind
        try:
            png, version = self._plane.mask(read_arrival(self._watch.folder, arrival, self._watch.max_file_bytes), kind)
        except FileChanged:
            return None
        except (RefusedImage, ImageFailed) as error:
            self._skip(image, error)
            return None
        except PlaneUnavailable as error:
            self._unanswered[name] += not error.answered  # the plane may die of this image
            if self._unanswered[name] < ATTEMPTS:
                raise
            self._skip(image, error)
            return None
        except OSError as error:  # a fault of the disk or the network: each walk tries it again, and it counts once
            if arrival.file not in self._unread:
                self._unread.add(arrival.file)
                self._count("failed", arrival, error)
            return None
        del self._unanswered[name]
        return png, note_of(arrival, kind, version)

    def _skip(self, image: Due, error: Exception) -> None:
        """Count a file that gets no mask until it changes; one that is not refused also until another version."""
        self._unanswered.pop(image.name, None)
        refused = isinstance(error, RefusedImage)
        self._queue.skip(image.name, image.wanted, again=not refused)
        self._count("refused" if refused else "failed", image.arrival, error)

    def _count(self, result: str, arrival: Arrival, error: Exception) -> None:
        self._update_report(**{result: getattr(self.report, result) + 1})
        log.warning(f"mask_{result}", name=arrival.file.path, reason=str(error))

    def _update_report(self, **changes: object) -> None:
        """Change the report; write it if it is time, or if a state changed."""
        self._moved()
        before, self.report = self.report, self.report.model_copy(update=changes)
        now = time.monotonic()
        states = (before.active, before.folder_present) != (self.report.active, self.report.folder_present)
        if states or now - self._reported >= REPORT_SECONDS:
            self._reported = now
            try:
                durable.write_record(self._path, self.report)
            except DurabilityLost:
                raise
            except (OSError, StorageError) as error:  # a full disk must not stop what reports it
                log.debug("report_not_written", path=str(self._path), error=str(error))

    def _log_once(self, trouble: str) -> None:
        """Log what is wrong once, not at every attempt."""
        if trouble and trouble != self._trouble:
            log.warning("masks_waiting", reason=trouble)
        self._trouble = trouble
