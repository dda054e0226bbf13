"""The drop folder: find files that are new and stable. Events are hints, the rescan decides.

A deep rescan compares size, mtime and change time of every file with the catalog. In between, rescans read names only
and stat the unknown ones (100,000 names: 0.13 s on a warm ext4). So the watcher finds files without events: bursts that
overflow the kernel's queue, network mounts that send nothing, a dead observer, a folder that was missing.
"""

import os
import time
from collections.abc import Callable

from configs.watch import WatchSettings
from daemon.metrics import IngestMetrics
from daemon.runtime.activity import MODES, STATES, WatchActivity
from daemon.runtime.logs import get_logger
from daemon.watch.arrival import Arrival, StabilityQueue, find_arrival
from daemon.watch.events import Hints
from daemon.watch.folder import FolderRoot
from daemon.watch.scan import RESCAN_SHARE, FolderScan
from storage.buffer.catalog import Catalog
from storage.buffer.catalog_records import FileFact

DEEP_SECONDS = 60.0
"""Shortest time between two deep rescans (seconds)."""
DEEP_SHARE = 20.0
"""As RESCAN_SHARE, for a deep rescan."""
HINT_SECONDS = 0.05
"""Events of a burst are processed together (seconds)."""
EVENT_SECONDS = 1.0
"""How late an event may come (seconds)."""
REMEMBERED = 1000
"""Number of unreadable files, and of complaints, that are kept."""

log = get_logger(__name__)


class Watcher:
    """Watches one folder for one thread, which calls `poll`, then `take`, then `mark_done` or `put_back` for each."""

    def __init__(
        self,
        settings: WatchSettings,
        catalog: Catalog,
        metrics: IngestMetrics,
        hints: Hints,
        overlap: Callable[[], str] = str,
    ) -> None:
        """Set up; `overlap` returns which folders of the configuration overlap now, empty when none do."""
        self._settings, self._catalog, self._metrics, self._hints = settings, catalog, metrics, hints
        self._root = FolderRoot(settings, metrics, hints, overlap)
        self._scan = FolderScan(settings)
        self._queue = StabilityQueue(settings.stability_seconds)
        self._known: set[str] = set()
        self._in_hand: dict[str, int] = {}
        self._unreadable: dict[str, int] | None = None
        self._aside: dict[str, Arrival] = {}
        """Files that the catalog cannot hold."""
        self._unannounced: dict[str, tuple[float, str]] = {}
        """By folder, when a file came (Unix, seconds) that a rescan found, and its name: an event should tell of it."""
        self._heard_at = self._lost_at = 0.0
        self._heard_in: dict[str, float] = {}
        """When an event of each folder was heard (Unix, seconds)."""
        self._unheard: dict[str, float] = {}
        """Since when no event of a folder told of a file (Unix, seconds)."""
        self._overflowing = 0
        self._next_hints = self._next_rescan = self._next_deep = 0.0
        self._complained: set[str] = set()
        self.activity = WatchActivity()
        """State, mode and backlog of the last poll; may be read from any thread."""

    @property
    def _refused_unreadable(self) -> dict[str, int]:
        """Files refused as unreadable, with the change time of that moment.

        After a restart it is unknown: try once. Raises StorageError when the catalog cannot be read.
        """
        if self._unreadable is None:
            found = self._catalog.refused(REMEMBERED)
            self._unreadable = {item.file.path: 0 for item in found if item.reason == "unreadable"}
        return self._unreadable

    def use(self, settings: WatchSettings) -> None:
        """Use the delays of these settings from the next `poll` on. May be called from any thread."""
        self._settings, self._queue.delay = settings, settings.stability_seconds

    def doubt_folders(self) -> None:
        """Ask again at the next `poll` whether folders overlap. May be called from any thread."""
        self._root.doubted = True

    def poll(self) -> None:
        """Find what is new: the folder itself, its observer, paths of events, and a rescan when it is due."""
        now = time.monotonic()
        if self._root.check():
            self._queue.clear()
            self._next_rescan = self._next_deep = now
        if self._root.seen.state == "watching":
            if self._hints.waiting and now >= self._next_hints:
                self._follow_hints(now)
            if now >= self._next_rescan or (self._overflowing and not len(self._queue)):
                self._rescan(now)
            self._judge_observer(now)
        else:
            self._queue.clear()
            self._overflowing = 0
        self._report()

    def take(self, limit: int) -> list[Arrival]:
        """Return at most `limit` stable files, oldest first; give each to `mark_done` or `put_back`."""
        taken: list[Arrival] = []
        if self._root.seen.state != "watching" or limit <= 0:
            return taken
        try:
            for name, arrival, failures in self._queue.take(self._see, time.monotonic()):
                if not arrival.renamed_into_place and self._is_known(name, arrival):
                    continue
                self._in_hand[name] = failures
                taken.append(arrival)
                if len(taken) == limit:
                    break
        except BaseException:  # the catalog could not be asked: nobody else would put back what is in hand
            for arrival in taken:
                self.put_back(arrival)
            raise
        return taken

    def mark_done(self, arrival: Arrival, *, unreadable: bool = False) -> None:
        """Note that the catalog has the file. An unreadable file is examined again when its mode changes."""
        name = self._name(arrival)
        self._in_hand.pop(name, None)
        now = self._see(name)
        if now is not None and now.file != arrival.file:  # it changed in our hands: events about it were not followed
            self._queue.note(name, now, time.monotonic())
            return
        if now is not None and now.changed_ns != arrival.changed_ns:  # replaced by one of the same size and mtime?
            self._queue.note_renamed(name, now, time.monotonic())
            return
        if now is None:  # moved or deleted: the next file of that name is a new one
            return
        self._known.add(name)
        self._refused_unreadable.pop(name, None)
        if unreadable:
            self._refused_unreadable[name] = arrival.changed_ns

    def set_aside(self, arrival: Arrival) -> None:
        """Take the file for known until it changes, because no record of it can be written."""
        self._aside[self._name(arrival)] = arrival

    def put_back(self, arrival: Arrival) -> None:
        """Retry the file later, because it could not be read now."""
        name = self._name(arrival)
        failures = self._in_hand.pop(name, 0) + 1
        self._queue.postpone(name, failures, time.monotonic())

    def rescan_soon(self) -> None:
        """Compare every file with the catalog at the next `poll`, because some entries were removed."""
        self._next_rescan = self._next_deep = 0.0

    def await_stability(self, arrival: Arrival) -> None:
        """Give a renamed file that cannot be used yet the delay of every other file."""
        name = self._name(arrival)
        self._in_hand.pop(name, None)
        now = self._see(name)
        if now is not None and not self._is_known(name, now):
            self._queue.note(name, now, time.monotonic())

    def next_due(self) -> float:
        """Return the seconds until `poll` and `take` can find something new without an event."""
        now = time.monotonic()
        due = [self._root.next_check - now]
        if self._root.seen.state == "watching":
            waiting = self._queue.next_due(now)
            due += [] if waiting is None else [waiting]
            due += [self._next_hints - now] if self._hints.waiting else []
        return max(0.0, min(due))

    def close(self) -> None:
        """Stop listening."""
        self._root.close()
        self._report()

    def _follow_hints(self, now: float) -> None:
        self._next_hints = now + HINT_SECONDS
        paths, heard, lost = self._hints.take()
        self._metrics.events.inc(heard)
        if heard:
            self._heard_at = time.time()
            folders = {os.path.dirname(path) for path in paths}  # noqa: PTH120 - thousands in a burst
            self._heard_in |= dict.fromkeys(folders, self._heard_at)
            self._unheard = {folder: since for folder, since in self._unheard.items() if folder not in folders}
            self._root.hear(folders)
        if lost:
            self._lost_at = time.time()
            self._metrics.overflows.inc()
            self._next_rescan = self._next_deep = now
        for path, renamed in paths.items():
            name = self._scan.relative(path)
            if name is not None and name not in self._in_hand:
                self._consider(name, now, renamed=renamed)

    def _consider(self, name: str, now: float, *, renamed: bool = False) -> bool:
        """Make a file a candidate unless the catalog has it unchanged; return whether it is one now."""
        if self._queue.full and name not in self._queue:
            self._next_rescan = min(self._next_rescan, now + self._settings.advanced.rescan_seconds)
            return False
        arrival = self._see(name)
        if arrival is None:
            return False
        if renamed:  # another file by now, though size and mtime may be those of the one before
            self._queue.note_renamed(name, arrival, now)
            return True
        if self._is_known(name, arrival):
            return False
        self._queue.note(name, arrival, now)
        return True

    def _is_known(self, name: str, arrival: Arrival) -> bool:
        """Return whether the catalog has the file unchanged; remember that for the rescan."""
        readable_again = self._refused_unreadable.get(name, arrival.changed_ns) != arrival.changed_ns
        if readable_again or not (self._is_aside(name, arrival) or self._catalog.known(arrival.file)):
            return False
        self._known.add(name)
        return True

    def _is_aside(self, name: str, arrival: Arrival) -> bool:
        aside = self._aside.get(name)
        return aside is not None and aside.matches(arrival)

    def _rescan(self, now: float) -> None:
        """Read every name; stat the unknown ones, and every file when the deep rescan is due."""
        deep = now >= self._next_deep
        try:
            found = self._walk(now, deep)
        except OSError as error:
            self._root.lose("unreadable", f"{self._root.folder} cannot be listed: {error.strerror}; retrying")
            return
        seconds = time.monotonic() - now
        self._metrics.rescans.inc()
        self._metrics.rescan_seconds.set(seconds)
        self._metrics.rescan_found.inc(found)
        end = now + seconds
        self._next_rescan = end + max(self._settings.advanced.rescan_seconds, RESCAN_SHARE * seconds)
        if deep:
            self._next_deep = end + max(DEEP_SECONDS, DEEP_SHARE * seconds)

    def _walk(self, now: float, deep: bool) -> int:
        """Walk once; return how many files it found that were not candidates yet."""
        facts = self._catalog.known_files() if deep else {}
        before, self._known = self._known, set()
        names: set[str] = set()
        found = self._overflowing = 0
        for name in self._scan.names(self._complain):
            names.add(name)
            seen = self._see(name) if deep else None
            same = name in before if not deep else seen is not None and _equal(facts.get(seen.file.path), seen.file)
            if same and name not in self._refused_unreadable:
                self._known.add(name)
            elif name not in self._queue and name not in self._in_hand:
                if self._queue.full:
                    self._overflowing += 1
                else:
                    new = self._consider(name, now)
                    found += new
                    if new:
                        self._expect_event(name)
        self._unreadable = {name: changed for name, changed in self._refused_unreadable.items() if name in names}
        self._aside = {name: arrival for name, arrival in self._aside.items() if name in names}
        return found

    def _expect_event(self, name: str) -> None:
        """Note a new file that came while the observer listened. A change of mode alone makes no event, so only new."""
        arrival = self._see(name)
        if arrival is None or (folder := str(arrival.path.parent)) in self._unannounced:
            return
        came = arrival.changed_ns / 1e9
        if came > self._root.listening_since + EVENT_SECONDS and not self._catalog.knows_path(arrival.file.path):
            self._unannounced[folder] = came, name

    def _judge_observer(self, now: float) -> None:
        """Distrust an observer that heard nothing at all from before a file came until well after it.

        Or nothing of the file's folder, twice: watchdog says nothing of a sub-folder that the kernel gave no watch for,
        and may miss the first files of a new one.
        """
        if self._hints.waiting:
            return
        for folder, (came, name) in list(self._unannounced.items()):
            if time.time() < came + EVENT_SECONDS:
                continue
            del self._unannounced[folder]
            if came <= self._root.listening_since:
                continue
            if self._heard_at < came - EVENT_SECONDS:
                self._root.distrust(name, now)
            elif (
                max(self._heard_in.get(folder, 0.0), self._lost_at) < came - EVENT_SECONDS
                and came > self._unheard.setdefault(folder, time.time()) + EVENT_SECONDS
            ):
                self._root.distrust(name, now, folder)

    def _see(self, name: str) -> Arrival | None:
        try:
            return find_arrival(self._settings.folder, name)
        except Exception as error:  # noqa: BLE001 - one name must not end the walk
            self._complain(name, error)
            return None

    def _complain(self, name: str, error: Exception) -> None:
        """Log an unreadable path once; a log must not fill a disk."""
        if name not in self._complained and len(self._complained) < REMEMBERED:
            self._complained.add(name)
            log.warning("path_unreadable", name=name, error=str(error))

    def _name(self, arrival: Arrival) -> str:
        return arrival.path.relative_to(self._settings.folder).as_posix()

    def _report(self) -> None:
        pending = len(self._queue) + len(self._in_hand) + self._overflowing
        found = {"pending": pending, "oldest_pending": self._queue.oldest()}
        activity = self.activity = self._root.seen.model_copy(update=found)
        self._metrics.pending.set(activity.pending)
        self._metrics.oldest_pending.set(activity.oldest_pending or 0)
        self._metrics.folder_present.set(activity.state == "watching")
        for mode, reason in MODES:
            self._metrics.mode.labels(mode, reason).set((mode, reason) == (activity.mode, activity.mode_reason))
        for state in STATES:
            self._metrics.state.labels(state).set(state == activity.state)


def _equal(fact: FileFact | None, file: FileFact) -> bool:
    return fact == file and fact.changed_ns == file.changed_ns
