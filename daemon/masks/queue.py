"""Find the images of the drop folder that need a mask: a walk compares each file with the note in its mask."""

import os
import time
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple

from configs.serving import MasksSettings
from configs.watch import WatchSettings
from daemon.masks.mask_file import Note, Version, mask_path, note_of, read_note
from daemon.runtime.logs import get_logger
from daemon.watch.arrival import Arrival, find_arrival
from daemon.watch.scan import FolderScan, missing_marker
from storage.buffer.catalog_records import FileFact
from storage.media import MADE_OF_VIDEOS

log = get_logger(__name__)


class Due(NamedTuple):
    """An image that needs a mask: its name in the drop folder, its file, and the note of the mask that it is to get."""

    name: str
    arrival: Arrival
    wanted: Note


class MaskQueue:
    """Remembers what is done; used by one thread."""

    def __init__(self, watch: WatchSettings, masks: MasksSettings, folder: Path) -> None:
        self._watch, self._masks, self._folder = watch, masks, folder
        self._scan = FolderScan(watch)
        self._done: dict[str, Note] = {}
        self._skipped: dict[str, tuple[Note, bool]] = {}
        self._unwritable: set[str] = set()
        self._moving: dict[FileFact, float] = {}
        """Files that do not stand still yet, and since when they have been as they are (monotonic, seconds)."""

    def walk(self, version: Version) -> tuple[list[Due], int]:
        """Return the images that are due, the newest first, and the number of those that do not stand still yet.

        Raises OSError when the drop folder is not there; nothing is forgotten then.
        """
        now = time.monotonic()
        if missing_marker(self._watch):
            raise FileNotFoundError(f"it holds no {self._watch.marker} (watch.marker), so it may not be mounted")
        waiting, names, moving = [], set(), {}
        for name in self._scan.names(_complain):
            if fnmatch(Path(name).name, MADE_OF_VIDEOS):  # such files are removed once ingest has them
                continue
            names.add(name)
            image = self._wanting(name, version)
            if image is None:
                continue
            file = image.arrival.file
            # It stands still since the time of its own clock, or as long as we have seen it so.
            since = min(self._moving.get(file, now), now - (time.time() - file.mtime_ns / 1e9))
            if now - since >= self._watch.stability_seconds:
                waiting.append((-len(self._unwritable & _places(name)), file.mtime_ns, name, image))
            else:
                moving[file] = since
        self._moving = moving
        self._unwritable &= set().union(*map(_places, names)) if self._unwritable else set()
        self._done = {name: note for name, note in self._done.items() if name in names}
        self._skipped = {name: skipped for name, skipped in self._skipped.items() if name in names}
        waiting.sort(key=lambda item: item[:3], reverse=True)
        return [image for *_, image in waiting], len(moving)

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

    def _wanting(self, name: str, version: Version) -> Due | None:
        """Return the image, if it needs a mask."""
        try:
            arrival = find_arrival(self._watch.folder, name)
        except OSError as error:
            _complain(name, error)
            return None
        if arrival is None:
            return None
        wanted = note_of(arrival, self._masks.kind, version)
        skipped, again = self._skipped.get(name, (None, False))
        if skipped is not None and skipped.meets(wanted, again=again):
            return None
        made = self._note_of_mask(name)
        there = made is not None and made.meets(wanted, again=self._masks.advanced.again)
        return None if there else Due(name, arrival, wanted)

    def _note_of_mask(self, name: str) -> Note | None:
        """Read once; later only whether the mask is still there. One that cannot be read is written anew."""
        path, known = mask_path(self._folder, name), self._done.pop(name, None)
        note = known if known is not None and os.path.lexists(path) else read_note(path)
        if note is not None:
            self._done[name] = note
        return note


def _places(name: str) -> set[str]:
    """Return the name and its sub-folder."""
    return {name, name.rpartition("/")[0]}


def _complain(name: str, error: OSError) -> None:
    log.debug("path_unreadable", name=name, error=str(error))
