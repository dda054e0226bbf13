"""Which files of the catalog are missing from the drop folder, so that `mfmd buffer compact` may forget their rows.

If the image of a forgotten row comes back, its digest shows that it was committed; a refused or skipped one is judged
again. A refused file in the quarantine is not missing: `mfmd refused retry` brings it back by its row.
"""

import itertools
import os
import re
from collections.abc import Iterator
from pathlib import Path

from configs.watch import WatchSettings
from daemon.watch.arrival import lstat_of
from daemon.watch.scan import missing_marker
from storage.buffer.catalog import Catalog
from storage.buffer.catalog_records import FileFact, fact_of

ESCAPED = re.compile(rb"\\x([89a-f][0-9a-f])")
"""A byte that is no text, as catalog paths hold it."""


def missing_files(watch: WatchSettings, catalog: Catalog) -> tuple[set[str], str]:
    """Return paths of the catalog without a file. If the folder cannot be trusted, return none and the reason."""
    known = catalog.known_files()
    missing = {path for path in known if all(_is_missing(watch.folder / name) for name in _names(path))}
    doubt = _doubt(watch, all_missing=bool(known) and missing == known.keys())
    missing -= set(_in_quarantine(watch, catalog))
    return (set(), doubt) if missing and doubt else (missing, "")


def quarantined(folder: Path, file: FileFact) -> Path | None:
    """Return the place of a refused file in the quarantine `folder`: its name or a numbered one, by size and mtime."""
    first = folder / file.path
    for number in itertools.count(1):
        place = first if number == 1 else first.with_name(f"{first.stem}-{number}{first.suffix}")
        status = lstat_of(place)
        if status is None:
            return None
        if fact_of(file.path, status) == file:
            return place
    raise AssertionError("itertools.count ended")


def _names(path: str) -> set[str]:
    """Return names that the file of a catalog path may have: bytes that are no text are escaped in the catalog."""
    return {path, os.fsdecode(ESCAPED.sub(lambda byte: bytes([int(byte[1], 16)]), os.fsencode(path)))}


def _is_missing(path: Path) -> bool:
    """Return whether nothing has this name; an unreadable folder may still hold it."""
    try:
        return lstat_of(path) is None
    except OSError:
        return False


def _in_quarantine(watch: WatchSettings, catalog: Catalog) -> Iterator[str]:
    """Return paths of refused files that are in the quarantine, or may be, because it is not mounted."""
    folder = watch.quarantine
    if folder is not None:
        there = folder.is_dir()
        yield from (
            item.file.path for item in catalog.refused(-1) if not there or quarantined(folder, item.file) is not None
        )


def _doubt(watch: WatchSettings, *, all_missing: bool) -> str:
    """Return why the folder may not be that of the catalog; empty when it is."""
    if not watch.folder.is_dir():
        return f"{watch.folder} does not exist"
    if watch.marker is not None:
        return missing_marker(watch)
    if all_missing and watch.after_commit == "keep":
        return f"none of the files is in {watch.folder}, so it may not be mounted; set watch.marker to detect that"
    return ""
