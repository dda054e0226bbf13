"""The drop folder itself: is it there, is it still the same one, do its events still come?"""

import os
import time
from pathlib import Path
from typing import Literal

from configs.settings import WatchSettings
from daemon.folder_events import FolderEvents, Hints
from daemon.logs import get_logger
from daemon.metrics import IngestMetrics

CHECK_SECONDS = 0.25
"""How often the folder is looked at (seconds)."""
OBSERVER_RETRY_SECONDS = 60.0
"""How long events are done without after the kernel refused them (seconds)."""

State = Literal["starting", "watching", "missing", "unreadable", "stopped"]
log = get_logger(__name__)


class FolderRoot:
    """State of the folder and the observer on it."""

    def __init__(self, settings: WatchSettings, metrics: IngestMetrics, hints: Hints) -> None:
        self.folder: Path = settings.folder
        self.state: State = "starting"
        """What `WatchActivity.state` says."""
        self.detail = ""
        """Why, when it is not simply watching."""
        self.next_check = 0.0
        """When it wants to be looked at again (monotonic, seconds)."""
        self._recursive, self._metrics, self._hints = settings.recursive, metrics, hints
        self._events: FolderEvents | None = None
        self._identity: tuple[int, int] | None = None
        self._next_observer = 0.0

    @property
    def mode(self) -> Literal["events", "rescan"]:
        """Whether events are heard."""
        return "events" if self._events is not None else "rescan"

    def check(self) -> bool:
        """Look at the folder; true when everything in it must be looked at anew.

        That is so when it is there for the first time, came back, was replaced (another device or inode: a mount), or
        when its observer had died: what happened meanwhile, nobody told us.
        """
        now = time.monotonic()
        if now < self.next_check:
            return False
        self.next_check = now + CHECK_SECONDS
        try:
            status = self.folder.stat()
            os.scandir(self.folder).close()  # may it be listed? Reads no names
        except (FileNotFoundError, NotADirectoryError) as error:
            self.lose("missing", f"{self.folder} does not exist; waiting for it ({error.strerror})")
            return False
        except OSError as error:
            self.lose("unreadable", f"{self.folder} cannot be listed: {error.strerror}; trying again")
            return False
        return self._follow((status.st_dev, status.st_ino), now)

    def lose(self, state: State, detail: str) -> None:
        """The folder cannot be used now."""
        if self.state != state:
            log.warning("folder_lost", state=state, detail=detail)
        self.state, self.detail = state, detail
        self._stop_events()

    def close(self) -> None:
        """Stop listening."""
        self._stop_events()
        self.state = "stopped"

    def _follow(self, identity: tuple[int, int], now: float) -> bool:
        """The folder can be listed: listen to it."""
        if self.state != "watching" or identity != self._identity:
            again = self._identity is not None
            self._identity, self.state, self.detail = identity, "watching", ""
            log.info("watching", folder=str(self.folder), again=again)
            self._start_events(now, again=again)
            return True
        if self._events is not None and not self._events.alive():
            log.warning("observer_died", folder=str(self.folder))
            self._start_events(now, again=True)
            return True
        if self._events is None and now >= self._next_observer:
            self._start_events(now, again=True)
        return False

    def _start_events(self, now: float, *, again: bool) -> None:
        self._stop_events()
        self._metrics.restarts.inc(again)
        events = FolderEvents(self.folder, recursive=self._recursive, hints=self._hints)
        try:
            events.start()
        except OSError as error:
            events.stop()
            self._next_observer = now + OBSERVER_RETRY_SECONDS
            self.detail = f"no events ({error.strerror or error}); every rescan finds what is new"
            log.warning("events_refused", error=str(error), retry_in=OBSERVER_RETRY_SECONDS)
            return
        self._events, self.detail = events, ""

    def _stop_events(self) -> None:
        events, self._events = self._events, None
        if events is not None:
            events.stop()
