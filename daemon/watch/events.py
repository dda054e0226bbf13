"""Kernel events of the drop folder as hints: a bounded set of paths that may be worth a look.

Nothing depends on an event: they come twice, for nothing, or not at all (watchdog 7.1 loses 18 % of a burst of 20,000
files with watchdog 7.1.0). They only make the daemon look sooner than the next rescan would, and tell which files were
renamed into place: those are whole at once.
"""

import logging
import os
import sys
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
from watchdog.observers import Observer
from watchdog.observers.api import BaseObserver

from daemon.runtime.logs import get_logger

MAX_HINTS = 50_000
"""Paths remembered between two looks; beyond this a rescan finds the rest."""
JOIN_SECONDS = 5.0
HEARD: list[type[FileSystemEvent]] = [FileCreatedEvent, FileModifiedEvent, FileClosedEvent, FileMovedEvent]
"""Not the opening and closing of files for reading: that is what we do ourselves."""

log = get_logger(__name__)


class Hints:
    """Paths that events named since the last look."""

    def __init__(self, wake: Callable[[], None]) -> None:
        self._lock = threading.Lock()
        self._paths: dict[str, bool] = {}
        self._heard = 0
        self._lost = False
        self._wake = wake

    def wake(self) -> None:
        """Have the listening thread look now, without a path: something else waits for it."""
        self._wake()

    def add(self, path: str) -> None:
        """Remember `path`: something happened there."""
        self._remember(path, renamed=False)

    def add_renamed(self, path: str) -> None:
        """Remember `path`: a file was renamed there, so it is whole."""
        self._remember(path, renamed=True)

    def _remember(self, path: str, *, renamed: bool) -> None:
        with self._lock:
            self._heard += 1
            first = not self._paths
            if len(self._paths) < MAX_HINTS or path in self._paths:
                self._paths[path] = renamed  # the last event counts: a file written to after its rename is not whole
            else:
                self._lost = True
        if first:  # the rest of a burst is looked at together
            self._wake()

    def lose(self) -> None:
        """Remember that events were lost."""
        with self._lock:
            self._lost = True
        self._wake()

    @property
    def waiting(self) -> bool:
        """Whether something was heard since the last `take`."""
        return self._heard > 0 or self._lost

    def take(self) -> tuple[dict[str, bool], int, bool]:
        """Since the last call: paths and whether each was renamed there, events heard, whether some were lost."""
        with self._lock:
            taken = self._paths, self._heard, self._lost
            self._paths, self._heard, self._lost = {}, 0, False
        return taken


class _Handler(FileSystemEventHandler):
    """Does one thing. An exception here would end the dispatcher's thread for ever (watchdog 7.1.0)."""

    def __init__(self, hints: Hints) -> None:
        self._hints = hints
        self._failed = False

    def dispatch(self, event: FileSystemEvent) -> None:
        """Put the path into the set; an event that cannot be is a lost one, and a rescan makes up for it."""
        try:
            self._take(event)
        except Exception as error:
            if not self._failed:  # once: a burst of them must not fill the log
                log.error("event_not_taken", error=str(error), exc_info=True)
            self._failed = True
            self._hints.lose()

    def _take(self, event: FileSystemEvent) -> None:
        """A renamed file is whole; what a renamed folder holds may be open still."""
        if isinstance(event, FileMovedEvent) and event.dest_path and not event.is_synthetic:
            self._hints.add_renamed(os.fsdecode(event.dest_path))
        else:
            self._hints.add(os.fsdecode(event.dest_path or event.src_path))


class _OverflowListener(logging.Handler):
    """watchdog tells of an overflow of the kernel's queue in its log and nowhere else."""

    def __init__(self, hints: Hints) -> None:
        super().__init__(logging.WARNING)
        self._hints = hints

    def emit(self, record: logging.LogRecord) -> None:
        """An overflow means that events were lost."""
        if "overflow" in record.getMessage().lower():
            self._hints.lose()


class FolderEvents:
    """One observer on one folder."""

    def __init__(self, root: Path, *, recursive: bool, hints: Hints) -> None:
        self._root, self._recursive, self._hints = root, recursive, hints
        self._observer: BaseObserver | None = None
        self._listener = _OverflowListener(hints)

    def start(self) -> None:
        """Listen. Raises OSError where the kernel refuses: the folder is gone, or its watches are used up."""
        logger = logging.getLogger("watchdog")
        logger.setLevel(
            min(logging.WARNING, logger.getEffectiveLevel())
        )  # `log.level: error` must not hide an overflow
        logger.addHandler(self._listener)
        self._observer = observer = _make_observer()
        observer.daemon = True
        observer.schedule(_Handler(self._hints), str(self._root), recursive=self._recursive, event_filter=HEARD)
        observer.start()

    def alive(self) -> bool:
        """Whether events still come: the observer lives on when its emitter has died (watchdog 7.1.0)."""
        observer = self._observer
        return (
            observer is not None
            and observer.is_alive()
            and bool(observer.emitters)
            and all(emitter.is_alive() for emitter in observer.emitters)
        )

    def stop(self) -> None:
        """Stop listening; also after `start` failed, or the kernel's side of the observer would stay."""
        logging.getLogger("watchdog").removeHandler(self._listener)
        observer, self._observer = self._observer, None
        if observer is None:
            return
        observer.stop()
        if observer.is_alive():
            observer.join(JOIN_SECONDS)


def _make_observer() -> BaseObserver:
    """On Linux with all events: otherwise a rename into the folder looks like a file that is being made (M11)."""
    if sys.platform == "linux":
        from watchdog.observers.inotify import InotifyObserver

        return InotifyObserver(timeout=0.5, generate_full_events=True)
    return Observer(timeout=0.5)
