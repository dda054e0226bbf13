"""Find refused files that `watch.quarantine` moved out of the drop folder."""

import itertools
from pathlib import Path

from storage.buffer.catalog_records import FileFact


def quarantined(folder: Path, file: FileFact) -> Path | None:
    """Return the path of the refused file in the quarantine `folder`, found by name, size and mtime."""
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
