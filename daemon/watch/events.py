"""Kernel events of the drop folder as hints: a bounded set of paths to examine.

Nothing depends on an event. Events come twice, for nothing, or not at all (watchdog 7.1.0 loses 18 % of a burst of
20,000 files). They only make the daemon scan sooner than the next rescan, and name files that were renamed into place,
which are complete at once.
"""

import logging
import os
import threading
from collections.abc import Callable
from pathlib import Path

from watchdog.events import (
    FileClosedEvent,
    FileCreatedEvent,
    FileModifiedEvent,
    FileMovedEvent,
    FileSystemEvent,
    FileSystemEventHandler,
)
from watchdog.observers.inotify import InotifyObserver

from daemon.runtime.logs import get_logger

MAX_HINTS = 50_000
"""Paths kept between two scans; beyond this a rescan finds the rest."""
JOIN_SECONDS = 5.0
HEARD: list[type[FileSystemEvent]] = [FileCreatedEvent, FileModifiedEvent, FileClosedEvent, FileMovedEvent]
"""Events to receive: not opening and closing of files for reading, because mfmd does that itself."""

log = get_logger(__name__)


class Hints:
    """Paths that events named since the last scan."""

    def __init__(self, wake: Callable[[], object]) -> None:
        self._lock = threading.Lock()
        self._paths: dict[str, bool] = {}
        self._heard = 0
        self._lost = False
        self.wake = wake
        """Wakes the listening thread, also without a path."""

    def add(self, path: str, *, renamed: bool = False) -> None:
        """Keep `path`: something happened there, or a file was renamed there, so that it is complete."""
        with self._lock:
            self._heard += 1
            first = not self._paths
            if len(self._paths) < MAX_HINTS or path in self._paths:
                self._paths[path] = renamed  # the last event counts: a file written to after its rename is not whole
            else:
                self._lost = True
        if first:  # the rest of a burst is looked at together
            self.wake()

    def lose(self) -> None:
        """Note that events were lost."""
        with self._lock:
            self._lost = True
        self.wake()

    @property
    def waiting(self) -> bool:
        """Whether an event arrived since the last `take`."""
        return self._heard > 0 or self._lost

    def take(self) -> tuple[dict[str, bool], int, bool]:
        """Return paths (and whether each was renamed there), number of events, whether some were lost.

        All are since the last call.
        """
        with self._lock:
            taken = self._paths, self._heard, self._lost
            self._paths, self._heard, self._lost = {}, 0, False
        return taken


class _Handler(FileSystemEventHandler):
    """Adds paths to the hints. An exception here would end the dispatcher's thread permanently (watchdog 7.1.0)."""

    def __init__(self, hints: Hints, root: Path, real: str) -> None:
        self._hints, self._root, self._real = hints, root, real
        self._failed = False

    def dispatch(self, event: FileSystemEvent) -> None:
        """Add the path; an unusable event counts as lost, and a rescan compensates."""
        # A renamed file is complete; the files of a renamed folder may still be open.
        renamed = isinstance(event, FileMovedEvent) and bool(event.dest_path) and not event.is_synthetic
        try:
            path = os.fsdecode(event.dest_path or event.src_path)
            self._hints.add(f"{self._root}{path.removeprefix(self._real)}", renamed=renamed)
        except Exception as error:
            if not self._failed:  # once: a burst of them must not fill the log
                log.error("event_handler_failed", error=str(error), exc_info=True)
            self._failed = True
            self._hints.lose()


class _OverflowListener(logging.Handler):
    """Reads watchdog's log, the only place where it reports an overflow of the kernel's queue."""

    def __init__(self, hints: Hints) -> None:
        super().__init__(logging.WARNING)
        self._hints = hints

    def emit(self, record: logging.LogRecord) -> None:
        """Note lost events at an overflow."""
        if "overflow" in record.getMessage().lower():
            self._hints.lose()


class FolderEvents:
    """One observer on one folder."""

    def __init__(self, root: Path, *, recursive: bool, hints: Hints) -> None:
        self._root, self._recursive, self._hints = root, recursive, hints
        self._observer: InotifyObserver | None = None
        self._listener = _OverflowListener(hints)

    def start(self) -> None:
        """Listen. Raises OSError when the kernel refuses: the folder is missing, or its watches are used up."""
        logger = logging.getLogger("watchdog")
        # `log.level: error` must not hide an overflow
        logger.setLevel(min(logging.WARNING, logger.getEffectiveLevel()))
        logger.addHandler(self._listener)
        # Without all events a rename into the folder looks like an unfinished file.
        self._observer = observer = InotifyObserver(timeout=0.5, generate_full_events=True)
        observer.daemon = True
        real = os.path.realpath(self._root)  # the observer would watch a link itself, which says nothing
        handler = _Handler(self._hints, self._root, real)
        observer.schedule(handler, real, recursive=self._recursive, event_filter=HEARD)
        observer.start()

    def alive(self) -> bool:
        """Whether events still arrive: the observer outlives its dead emitter (watchdog 7.1.0)."""
        observer = self._observer
        return (
            observer is not None
            and observer.is_alive()
            and bool(observer.emitters)
            and all(emitter.is_alive() for emitter in observer.emitters)
        )

    def stop(self) -> None:
        """Stop listening; also after `start` failed, because the kernel's side of the observer would stay."""
        logging.getLogger("watchdog").removeHandler(self._listener)
        observer, self._observer = self._observer, None
        if observer is None:
            return
        observer.stop()
        if observer.is_alive():
            observer.join(JOIN_SECONDS)
