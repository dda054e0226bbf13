"""State of the drop folder: whether it exists, is still the same one, and its events still arrive."""

import math
import os
import time
from collections.abc import Callable
from pathlib import Path

from configs.watch import WatchSettings
from daemon.metrics import IngestMetrics
from daemon.runtime.activity import FolderState, WatchActivity
from daemon.runtime.logs import get_logger
from daemon.watch.events import FolderEvents, Hints
from daemon.watch.mode import choose_mode
from daemon.watch.scan import missing_marker

CHECK_SECONDS = 0.25
"""Interval between checks of the folder (seconds)."""
OBSERVER_RETRY_SECONDS = 60.0
"""Delay before events are tried again after the kernel refused them (seconds)."""

log = get_logger(__name__)


class FolderRoot:
    """State of the folder and the observer on it."""

    def __init__(
        self, settings: WatchSettings, metrics: IngestMetrics, hints: Hints, overlap: Callable[[], str]
    ) -> None:
        self.folder: Path = settings.folder
        self.seen = WatchActivity()
        """Its state, and how new files are noticed now; without what is pending."""
        self.next_check = 0.0
        """When it wants to be looked at again (monotonic, seconds)."""
        self.doubted = False
        """Whether folders were seen to overlap, so that the next check asks again; any thread may set it."""
        self._settings, self._metrics, self._hints = settings, metrics, hints
        self._overlap = overlap
        self._events: FolderEvents | None = None
        self._identity: tuple[int, int] | None = None
        self._next_observer = 0.0
        self._deaf_in = ""
        self.listening_since = math.inf
        """When the observer was started (Unix, seconds)."""

    def check(self) -> bool:
        """Check the folder; return True when everything in it must be examined again.

        That is so when it is there for the first time, came back, was replaced (another device or inode: a mount, or a
        link that was turned), or when its observer died, because events were lost meanwhile. While its marker is absent
        it counts as not mounted. While it leads to a folder that overlaps another one, nothing is
        taken.
        """
        now = time.monotonic()
        if now < self.next_check:
            return False
        self.next_check = now + CHECK_SECONDS
        try:
            status = self.folder.stat()
            os.scandir(self.folder).close()  # may it be listed? Reads no names
            unmarked = missing_marker(self._settings)
        except (FileNotFoundError, NotADirectoryError) as error:
            self.lose("missing", f"{self.folder} does not exist; waiting for it ({error.strerror})")
            return False
        except OSError as error:
            self.lose("unreadable", f"{self.folder} cannot be listed: {error.strerror}; retrying")
            return False
        if unmarked:
            self.lose("unmounted", f"{unmarked}: not mounted? Waiting")
            return False
        return self._follow((status.st_dev, status.st_ino), now)

    def lose(self, state: FolderState, detail: str) -> None:
        """Note that the folder cannot be used now."""
        if self.seen.state != state:
            log.warning("folder_unavailable", state=state, detail=detail)
        self._stop_events()
        self.seen = WatchActivity(state=state, detail=detail)

    def distrust(self, name: str, now: float, folder: str = "") -> None:
        """Start the observer again, because no event told of the file `name`; until it hears one, we only poll.

        `folder`: the sub-folder that it must hear one of; empty when any event will do.
        """
        if self._events is None or (self.seen.mode_reason == "deaf" and now < self._next_observer):
            return
        log.warning("observer_deaf", folder=str(self.folder), file=name)
        self._start_events(now, again=True)
        if self._events is not None:
            self._deaf_in = folder
            where = f" in {folder}: it may have no inotify watch (limit reached, no permission)" if folder else ""
            detail = f"no event told of new files{where}; the rescan finds them"
            self.seen = self.seen.model_copy(update={"mode": "polling", "mode_reason": "deaf", "detail": detail})
            self._next_observer = now + OBSERVER_RETRY_SECONDS

    def hear(self, folders: set[str]) -> None:
        """Note that events of these folders arrived."""
        if self.seen.mode_reason == "deaf" and (not self._deaf_in or self._deaf_in in folders):
            self.seen = choose_mode(self._settings.mode, self.folder)
            log.info("observer_hears", folder=str(self.folder))

    def close(self) -> None:
        """Stop listening."""
        self._stop_events()
        self.seen = WatchActivity(state="stopped", detail=self.seen.detail)

    def _follow(self, identity: tuple[int, int], now: float) -> bool:
        if self.seen.state != "watching" or identity != self._identity or self.doubted:
            if overlapping := self._overlap():  # asked only here: another folder may be on a mount that hangs
                self.lose("overlapping", f"nothing is taken, because of where a link leads now: {overlapping}")
                return False
            again = self._identity is not None
            self._identity, self.doubted = identity, False
            self._start_events(now, again=again)
            how = {"mode": self.seen.mode, "reason": self.seen.mode_reason}
            real = os.path.realpath(self.folder)
            where = {} if real == str(self.folder) else {"leads_to": real}
            log.info("watching", folder=str(self.folder), again=again, **where, **how)
            return True
        if self._events is not None and not self._events.alive():
            log.warning("observer_failed", folder=str(self.folder))
            self._start_events(now, again=True)
            return True
        if self.seen.mode_reason == "refused" and now >= self._next_observer:
            self._start_events(now, again=True)
        return False

    def _start_events(self, now: float, *, again: bool) -> None:
        self._stop_events()
        self.seen = choose_mode(self._settings.mode, self.folder)
        if self.seen.mode == "polling":
            return
        self._metrics.restarts.inc(again)
        events = FolderEvents(self.folder, recursive=self._settings.advanced.recursive, hints=self._hints)
        try:
            events.start()
        except OSError as error:
            events.stop()
            self._next_observer = now + OBSERVER_RETRY_SECONDS
            detail = f"no events ({error.strerror or error}); the rescan finds new files"
            refused = {"mode": "polling", "mode_reason": "refused", "detail": detail}
            self.seen = self.seen.model_copy(update=refused)
            log.warning("events_unavailable", error=str(error), retry_in=OBSERVER_RETRY_SECONDS)
            return
        self._events = events
        self.listening_since = time.time()

    def _stop_events(self) -> None:
        if self._events is not None:
            self._events.stop()
        self._events = None
