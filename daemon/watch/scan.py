"""Names in the drop folder: one walk, in bounded memory, that never follows a link to a directory."""

import fnmatch
import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePosixPath

from configs.watch import WatchSettings
from storage.media.videos import MADE_OF_VIDEOS, SUFFIXES

Complain = Callable[[str, OSError], None]
"""Hears of a sub-folder that cannot be listed."""


class FolderScan:
    """Walks the folder that `settings` describe; for files named like a video, or for all others."""

    def __init__(self, settings: WatchSettings, *, videos: bool = False) -> None:
        self.root = settings.folder
        self._recursive = settings.advanced.recursive
        self._marker = None if settings.marker is None else PurePosixPath(settings.marker)
        self._ignored = _any_of(settings.ignore)
        self._videos = videos
        self._included = _any_of((*settings.advanced.include, MADE_OF_VIDEOS) if settings.advanced.include else ("*",))

    def names(self, complain: Complain) -> Iterator[tuple[str, os.DirEntry[str]]]:
        """Path relative to the folder (posix) and entry of every file and link to a file, ignored ones left out.

        Raises OSError when the folder itself cannot be listed; a sub-folder that cannot is told to `complain`.
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
                            yield prefix + entry.name, entry
            except OSError as error:
                if not prefix:
                    raise
                complain(prefix, error)

    def relative(self, path: str) -> str | None:
        """`path` relative to the folder, posix; none when it lies elsewhere, too deep, or is not looked at."""
        try:
            parts = Path(path).relative_to(self.root).parts
        except ValueError:
            return None
        if not parts or (len(parts) > 1 and not self._recursive) or any(map(self._ignored.match, parts[:-1])):
            return None
        prefix = "".join(f"{part}/" for part in parts[:-1])
        return prefix + parts[-1] if self._wanted(prefix, parts[-1]) else None

    def _wanted(self, prefix: str, name: str) -> bool:
        """Whether a file of this name is looked at; the marker is no image."""
        if self._ignored.match(name) or not self._included.match(name):
            return False
        if name.lower().endswith(SUFFIXES) != self._videos:
            return False
        return self._marker is None or PurePosixPath(prefix, name) != self._marker


def _any_of(patterns: Iterable[str]) -> re.Pattern[str]:
    """Matches a name that one of the patterns matches, in any case; no pattern matches nothing."""
    return re.compile("|".join(map(fnmatch.translate, patterns)) or r"(?!)", re.IGNORECASE)
