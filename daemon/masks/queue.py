"""Find the images of the drop folder that need a mask: a walk compares each file with the note in its mask."""

import heapq
import os
import time
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from configs.serving import MasksSettings
from configs.watch import WatchSettings
from daemon.masks.mask_file import Note, Version, is_current, mask_path, note_of, read_note
from daemon.runtime.logs import get_logger
from daemon.watch.arrival import Arrival, look_at
from daemon.watch.watcher import FolderScan
from storage.media.videos import MADE_OF_VIDEOS

LIMIT = 256
"""Images handed out after one walk; the newest first, so that a long backlog does not delay what comes in."""

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Found:
    """What one walk found."""

    due: tuple[tuple[str, Arrival], ...]
    """Name and file of at most `LIMIT` images, the newest first."""
    pending: int
    """Images that want a mask, those included that do not stand still yet (files)."""
    unstable: bool
    """Whether some of them do not stand still yet."""


class MaskQueue:
    """Remembers what is done; used by one thread."""

    def __init__(self, watch: WatchSettings, masks: MasksSettings, folder: Path) -> None:
        self._watch, self._masks, self._folder = watch, masks, folder
        self._scan = FolderScan(watch)
        self._done: dict[str, Note] = {}
        self._skipped: dict[str, tuple[Note, bool]] = {}
        self._unwritable: set[str] = set()
        self._moving: dict[str, tuple[Arrival, float]] = {}

    def walk(self, version: Version) -> Found:
        """Look at every file. Raises OSError when the drop folder cannot be listed; nothing is forgotten then."""
        now, waiting, names = time.monotonic(), [], set()
        moving: dict[str, tuple[Arrival, float]] = {}
        for name, _ in self._scan.names(_complain):
            if fnmatch(Path(name).name, MADE_OF_VIDEOS):  # such files are removed once ingest has them
                continue
            names.add(name)
            arrival = self._wanting(name, version)
            if arrival is None:
                continue
            since = self._still_since(name, arrival, now)
            if now - since >= self._watch.stability_seconds:
                waiting.append((-len(self._unwritable & _places(name)), arrival.file.mtime_ns, name, arrival))
            else:
                moving[name] = arrival, since
        self._moving = moving
        self._unwritable &= set().union(*map(_places, names)) if self._unwritable else set()
        for known in (self._done, self._skipped):
            for gone in known.keys() - names:
                del known[gone]
        newest = heapq.nlargest(LIMIT, waiting, key=lambda item: item[:3])
        return Found(tuple(item[2:] for item in newest), len(waiting) + len(moving), bool(moving))

    def done(self, name: str, note: Note) -> None:
        """Note that the mask of this image was written."""
        self._done[name] = note
        self._unwritable -= _places(name)

    def skip(self, name: str, note: Note, *, again: bool) -> None:
        """Give the file no mask until it changes; `again`: or until another version serves."""
        self._skipped[name] = note, again

    def put_last(self, name: str) -> None:
        """Let this image wait for all others, and its sub-folder for other folders: its mask cannot be written now."""
        self._unwritable |= _places(name)

    def _wanting(self, name: str, version: Version) -> Arrival | None:
        """Return the file, if it needs a mask."""
        try:
            arrival = look_at(self._watch.folder, name)
            if arrival is None:
                return None
            wanted = note_of(arrival, self._masks.kind, version)
            note, again = self._skipped.get(name, (None, False))
            if is_current(note, wanted, again=again):
                return None
        except OSError as error:
            _complain(name, error)
            return None
        return None if is_current(self._note_of_mask(name), wanted, again=self._masks.again) else arrival

    def _note_of_mask(self, name: str) -> Note | None:
        """Read once; later only whether the mask is still there. One that cannot be read is written anew."""
        path, known = mask_path(self._folder, name), self._done.get(name)
        if known is not None and os.path.lexists(path):
            return known
        try:
            note = read_note(path)
        except OSError as error:
            _complain(name, error)
            note = None
        if note is None:
            self._done.pop(name, None)
        else:
            self._done[name] = note
        return note

    def _still_since(self, name: str, arrival: Arrival, now: float) -> float:
        """Since when the file stands still (monotonic seconds): by its own clock, or as long as we have seen it so."""
        before = self._moving.get(name)
        seen = before[1] if before is not None and before[0].file == arrival.file else now
        return min(seen, now - (time.time() - arrival.file.mtime_ns / 1e9))


def _places(name: str) -> set[str]:
    """Return the name and its sub-folder."""
    return {name, name.rpartition("/")[0]}


def _complain(name: str, error: OSError) -> None:
    log.debug("path_unreadable", name=name, error=str(error))
