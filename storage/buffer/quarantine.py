"""Where a refused file lies that `watch.quarantine` took out of the drop folder."""

import itertools
from pathlib import Path

from storage.buffer.catalog_records import FileFact


def quarantined(folder: Path, file: FileFact) -> Path | None:
    """The refused file's place in the quarantine `folder`: its name or a numbered one, told by size and mtime."""
    first = folder / file.path
    for number in itertools.count(1):
        place = first if number == 1 else first.with_name(f"{first.stem}-{number}{first.suffix}")
        try:
            status = place.lstat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        if (status.st_size, status.st_mtime_ns) == (file.size, file.mtime_ns):
            return place
    raise AssertionError("itertools.count ended")
