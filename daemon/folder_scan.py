"""Names in the drop folder: one walk, in bounded memory, that never follows a link to a directory."""

import fnmatch
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

from configs.settings import WatchSettings

Complain = Callable[[str, OSError], None]
"""Hears of a sub-folder that cannot be listed."""


class FolderScan:
    """Walks the folder that `settings` describe."""

    def __init__(self, settings: WatchSettings) -> None:
        self.root = settings.folder
        self._recursive = settings.recursive
        self._ignored = re.compile("|".join(fnmatch.translate(pattern) for pattern in settings.ignore) or r"(?!)")

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
                        elif (entry.is_symlink() or entry.is_file()) and not self._ignored.match(entry.name):
                            yield prefix + entry.name, entry
            except OSError as error:
                if not prefix:
                    raise
                complain(prefix, error)

    def relative(self, path: str) -> str | None:
        """`path` relative to the folder, posix; none when it lies elsewhere, too deep, or is ignored."""
        try:
            parts = Path(path).relative_to(self.root).parts
        except ValueError:
            return None
        if not parts or (len(parts) > 1 and not self._recursive) or any(map(self._ignored.match, parts)):
            return None
        return str(PurePosixPath(*parts))
