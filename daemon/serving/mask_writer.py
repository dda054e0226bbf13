"""Masks as files, for users without HTTP: a thread of the inference plane gives every image of the drop folder one.

It asks the plane like a client would, one image at a time, and gives way to real ones: what an HTTP request can lose to
it is one image's turn. Nothing is ever deleted: not when an image goes, not when the drop folder does.
"""

import asyncio
import errno
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from configs.settings import Settings
from daemon.runtime.logs import get_logger
from daemon.serving.errors import ApiError, NotReady
from daemon.serving.mask_file import Note, mask_bytes, mask_path, note_of
from daemon.serving.mask_queue import LIMIT, Found, MaskQueue
from daemon.serving.versions.follower import be_nice
from daemon.serving.versions.slots import Resident
from daemon.watch.arrival import Arrival, FileChanged, read_arrival
from storage import durable
from storage.errors import RefusedImage
from storage.media.images import decode_image

if TYPE_CHECKING:
    from daemon.serving.plane import InferencePlane

LOCK = ".mfmd-masks.lock"
"""File in the folder of masks; of several servers on one configuration one writes, the others stand by."""
WALK_SHARE = 10.0
"""A walk waits at least this many times its own duration, so that a huge folder costs a bounded share of a core."""
GIVE_WAY_SECONDS = 1.0
"""Longest that an image waits for the queue of requests to be empty (seconds); so masks also come under full load."""
POLL_SECONDS = 0.01
NO_SUCH_NAME = (errno.ENAMETOOLONG, errno.EILSEQ, errno.EINVAL, errno.ENOTDIR, errno.EISDIR, errno.EEXIST)
"""Errors that are about one mask's name, not about the disk."""
BUSY = 500
"""An answer of this HTTP status or more is about the server, not about the image."""
NICENESS = 10
"""Decoding and encoding give way to serving: niceness of this thread."""

log = get_logger(__name__)


class MaskWriter:
    """The thread; does nothing where `masks.folder` is not set."""

    def __init__(self, settings: Settings, plane: "InferencePlane") -> None:
        self._settings, self._plane = settings, plane
        self._metrics = plane.metrics.masks
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="mfmd-masks", daemon=True)
        self._trouble = ""

    def start(self) -> None:
        """Start, if masks are wanted."""
        if self._settings.masks.folder is not None:
            self._thread.start()

    def stop(self, timeout: float) -> None:
        """End after the mask in hand; gives up after `timeout` seconds."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout)

    def _work(self) -> None:
        be_nice(NICENESS)
        try:
            while not self._stop.is_set():
                self._try_to_write()
                self._stop.wait(self._settings.watch.rescan_seconds)
        except Exception:  # an fsync that failed is never tried again, and a bug must not take serving with it
            log.critical("masks_stopped", exc_info=True)
        finally:
            self._metrics.active.set(0)
            self._metrics.folder_present.set(0)

    def _try_to_write(self) -> None:
        """Write until stopped, or return when the folder cannot be used now or is another server's."""
        folder = self._settings.masks.folder
        assert folder is not None
        try:
            durable.make_directory(folder)
            with durable.exclusive_lock(folder / LOCK, wait=False), asyncio.Runner() as runner:
                for path in [folder, *(item for item in folder.rglob("*") if item.is_dir())]:
                    durable.remove_partials(path, shared=True)
                self._metrics.active.set(1)
                self._write(folder, runner)
        except durable.Locked:
            self._say("another server writes masks here")
        except OSError as error:
            self._metrics.results.labels(result="failed").inc()
            self._say(f"masks cannot be written to {folder}: {error.strerror or error}; trying again")
        self._metrics.active.set(0)

    def _write(self, folder: Path, runner: asyncio.Runner) -> None:
        """Walk and write in turn until stopped. Raises OSError when a mask cannot be written."""
        queue = MaskQueue(self._settings.watch, self._settings.masks, folder)
        while not self._stop.is_set():
            began = time.monotonic()
            found = self._walk(queue)
            took = time.monotonic() - began
            pause = self._pause(found, took)
            for name, arrival in found.due if found else ():
                if self._stop.is_set() or time.monotonic() - began > pause:
                    break  # look again: what has come in since goes first
                self._one(queue, name, arrival, runner)
            else:
                backlog = found is not None and found.pending > LIMIT
                rest = WALK_SHARE * took if backlog else pause
                self._stop.wait(max(0.0, began + rest - time.monotonic()))

    def _walk(self, queue: MaskQueue) -> Found | None:
        """What wants a mask; none while no version serves or the drop folder cannot be listed."""
        live = self._plane.slots.live
        if live is None or not self._plane.ready:
            return None
        try:
            found = queue.walk(live)
        except OSError as error:
            self._metrics.folder_present.set(0)
            self._say(f"{self._settings.watch.folder} cannot be listed: {error.strerror or error}; waiting for it")
            return None
        self._metrics.folder_present.set(1)
        self._metrics.pending.set(found.pending)
        self._say("")
        return found

    def _pause(self, found: Found | None, took: float) -> float:
        """From the start of one walk to that of the next (seconds)."""
        watch = self._settings.watch
        wanted = watch.rescan_seconds
        if found is None or found.unstable:
            wanted = min(wanted, max(watch.stability_seconds, POLL_SECONDS))
        return max(wanted, WALK_SHARE * took)

    def _one(self, queue: MaskQueue, name: str, arrival: Arrival, runner: asyncio.Runner) -> None:
        """One image. Raises OSError when its mask cannot be written, DurabilityLost."""
        self._give_way()
        try:
            with self._plane.slots.lease() as resident:
                note = note_of(arrival, self._settings.masks.kind, resident)
                content = self._content(queue, name, arrival, resident, note, runner)
        except NotReady:  # the next walk finds it again
            return
        if content is None:
            return
        path = mask_path(self._settings.masks.folder or Path(), name)
        try:
            durable.make_directory(path.parent)
            durable.write_bytes(path, content)
        except OSError as error:
            if error.errno not in NO_SUCH_NAME:
                raise
            queue.fail(name, note)
            self._count("failed", arrival, note, error)
            return
        queue.done(name, note)
        self._metrics.results.labels(result="written").inc()
        self._metrics.pending.dec()
        self._metrics.last_written.set_to_current_time()

    def _content(
        self, queue: MaskQueue, name: str, arrival: Arrival, resident: Resident, note: Note, runner: asyncio.Runner
    ) -> bytes | None:
        """The mask's bytes; none when there is none to write now, or none to be had from this file."""
        try:
            pixels = self._pixels(arrival)
            [labels] = runner.run(self._plane.segment(resident, lambda: [pixels]))
            return mask_bytes(labels, pixels, resident, note)
        except FileChanged:
            return None
        except (RefusedImage, ApiError) as error:
            if isinstance(error, RefusedImage) or error.status < BUSY:
                queue.refuse(name, note)
                self._count("refused", arrival, note, error)
        except OSError as error:  # a fault of the disk or the network: the next walk tries it again
            self._count("failed", arrival, note, error)
        except Exception as error:  # noqa: BLE001 - an image that no forward pass survives must not end masks
            queue.fail(name, note)
            self._count("failed", arrival, note, error)
        return None

    def _count(self, result: str, arrival: Arrival, note: Note, error: Exception) -> None:
        self._metrics.results.labels(result=result).inc()
        log.warning(f"mask_{result}", name=arrival.file.path, version=note.version, reason=str(error))

    def _pixels(self, arrival: Arrival) -> NDArray[np.uint8]:
        """The image, within the limits of ingest. Raises RefusedImage, FileChanged, OSError."""
        watch = self._settings.watch
        data = read_arrival(watch.folder, arrival, watch.max_file_bytes)
        limits = {"max_bytes": watch.max_file_bytes, "max_pixels": watch.max_pixels}
        return decode_image(data, **limits, max_aspect=watch.max_aspect)

    def _give_way(self) -> None:
        """Wait until no request waits, or as long as an image may be held up."""
        deadline = time.monotonic() + GIVE_WAY_SECONDS
        while self._plane.batcher.depth and time.monotonic() < deadline and not self._stop.is_set():
            self._stop.wait(POLL_SECONDS)

    def _say(self, trouble: str) -> None:
        """Log what is wrong once, not at every try."""
        if trouble and trouble != self._trouble:
            log.warning("masks_wait", reason=trouble)
        self._trouble = trouble
