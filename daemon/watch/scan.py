"""The names in the drop folder: those of images or those of videos, without ignored ones."""

import fnmatch
import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePosixPath

from configs.watch import WatchSettings
from storage.media import MADE_OF_VIDEOS, VIDEO_SUFFIXES

RESCAN_SHARE = 10.0
"""A rescan waits at least this many times its own duration, so that a huge folder costs a bounded share of a core."""

Complain = Callable[[str, OSError], None]
"""Called for a sub-folder that cannot be listed."""


def missing_marker(watch: WatchSettings) -> str:
    """Return that the folder lacks its marker, so that it may not be mounted; empty when it has it or needs none."""
    if watch.marker is None or (watch.folder / watch.marker).exists():
        return ""
    return f"{watch.folder} holds no {watch.marker} (watch.marker)"


class FolderScan:
    """Walks the folder that `settings` describe; for files named like a video, or for all others."""

    def __init__(self, settings: WatchSettings, *, videos: bool = False) -> None:
        self.root = settings.folder
        self._recursive = settings.advanced.recursive
        self._marker = None if settings.marker is None else PurePosixPath(settings.marker)
        self._ignored = _any_of(settings.ignore)
        self._videos = videos
        self._made = _any_of(() if videos else (MADE_OF_VIDEOS,))  # by mfmd: patterns are for files of others
        self._included = _any_of(settings.advanced.include or ("*",))

    def names(self, complain: Complain) -> Iterator[str]:
        """Yield the relative path (posix) of every file and link to a file, without ignored ones.

        Raises OSError when the folder itself cannot be listed; `complain` is called for a sub-folder that cannot.
        """
        waiting = [""]
        while waiting:
            prefix = waiting.pop()
            try:
                with os.scandir(self.root / prefix) as entries:
                    for entry in entries:
                        if entry.is_dir(follow_symlinks=False):
                            if self._recursive and not self._ignored.match(entry.name):
                                waiting.append(f"{prefix}{entry.name}/")
                        elif (entry.is_symlink() or entry.is_file()) and self._wanted(prefix, entry.name):
                            yield prefix + entry.name
            except OSError as error:
                if not prefix:
                    raise
                complain(prefix, error)

    def relative(self, path: str) -> str | None:
        """Return `path` relative to the folder, posix; None when it is elsewhere, too deep, or ignored."""
        try:
            parts = Path(path).relative_to(self.root).parts
        except ValueError:
            return None
        if not parts or (len(parts) > 1 and not self._recursive) or any(map(self._ignored.match, parts[:-1])):
            return None
        prefix = "".join(f"{part}/" for part in parts[:-1])
        return prefix + parts[-1] if self._wanted(prefix, parts[-1]) else None

    def _wanted(self, prefix: str, name: str) -> bool:
        """Return whether a file of this name is wanted; the marker is no image."""
        if not self._made.match(name) and (self._ignored.match(name) or not self._included.match(name)):
            return False
        if name.lower().endswith(VIDEO_SUFFIXES) != self._videos:
            return False
        return self._marker is None or PurePosixPath(prefix, name) != self._marker


def _any_of(patterns: Iterable[str]) -> re.Pattern[str]:
    """Return a pattern for names that match one of the patterns, in any case; no pattern matches nothing."""
    return re.compile("|".join(map(fnmatch.translate, patterns)) or r"(?!)", re.IGNORECASE)
