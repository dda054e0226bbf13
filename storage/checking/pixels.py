"""Check whether every committed frame has its pixels, and no other file lies among them."""

import time
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial

from storage import durable
from storage.buffer.catalog import Catalog
from storage.buffer.catalog_records import FrameRecord
from storage.buffer.files import ARRAY
from storage.buffer.lost import give_up
from storage.buffer.pixel_array import PixelArray
from storage.checking.catalog import REPAIR, RESTORE, readable_catalog
from storage.checking.problem import Problem, Scope
from storage.errors import CorruptBuffer, StorageError
from storage.layout import StateLayout
from storage.media.images import crc32_of


def check_pixels(scope: Scope) -> Iterator[Problem]:
    """Return problems of the zarr array and of its frames; nothing when the catalog cannot be read."""
    layout = scope.layout
    catalog = readable_catalog(layout)
    if catalog is None:
        return
    with closing(catalog):
        try:
            records = catalog.records()
            array = PixelArray(layout.frames_zarr, ARRAY, writable=False)
        except CorruptBuffer as error:
            if records or layout.frames_zarr.exists():
                yield _no_array(layout, str(error), len(records))
            return
        except StorageError:
            return  # `check_catalog` tells it
        outside = [record for record in records if record.slot >= array.shape[0]]
        yield from _outside(layout, array, outside)
        for record in records:
            if record not in outside:
                yield from _frame(scope, array, catalog, record)
        yield from _orphans(array, catalog)


def _no_array(layout: StateLayout, error: str, frames: int) -> Problem:
    code = "pixels_unreadable" if layout.frames_zarr.exists() else "pixels_missing"
    return Problem(code, layout.frames_zarr, f"{error}; the catalog has {frames} frames", RESTORE)


def _outside(layout: StateLayout, array: PixelArray, records: list[FrameRecord]) -> Iterator[Problem]:
    """Report frames in slots that the array does not have: its metadata is older than the catalog."""
    if records:
        count = max(record.slot for record in records) + 1
        detail = f"has {array.shape[0]} slots, {len(records)} frames are in slots up to {count - 1}"
        yield Problem("slots_missing", array.folder, detail, REPAIR, partial(_grow, layout, count))


def _grow(layout: StateLayout, count: int) -> None:
    array = PixelArray(layout.frames_zarr, ARRAY, writable=True)
    durable.fsync_file(array.grow(count))
    durable.fsync_directory(array.folder)


def _frame(scope: Scope, array: PixelArray, catalog: Catalog, record: FrameRecord) -> Iterator[Problem]:
    path = array.shard_path(record.slot)
    if not path.is_file():
        code, detail = "frame_missing", "its pixels are missing"
    else:
        code, detail = "frame_damaged", _damage(scope, array, record)
    if detail and catalog.holds(record):  # else it was evicted meanwhile
        remedy = f"{REPAIR} removes it; if its file is still in the drop folder, it is ingested again"
        mend = _giving_up(scope.layout, record, f"{path.name}: {detail}")
        yield Problem(code, path, f"frame {record.id} ({record.name}): {detail}", remedy, mend)


def _giving_up(layout: StateLayout, record: FrameRecord, reason: str) -> Callable[[], None]:
    def mend() -> None:
        give_up(layout, record, reason, time.time())
        PixelArray(layout.frames_zarr, ARRAY, writable=False).shard_path(record.slot).unlink(missing_ok=True)

    return mend


def _damage(scope: Scope, array: PixelArray, record: FrameRecord) -> str:
    """Return what is wrong with a frame's pixels; without reading them, only an empty file is detected."""
    if not scope.read_data:
        return "" if array.shard_path(record.slot).stat().st_size else "its file is empty"
    try:
        pixels = array.read(record.slot)
    except CorruptBuffer as error:
        return str(error)
    return "" if crc32_of(pixels) == record.crc32 else "its pixels do not match their checksum"


def _orphans(array: PixelArray, catalog: Catalog) -> Iterator[Problem]:
    for slot in sorted(set(array.shard_indices()) - catalog.slots()):
        path = array.shard_path(slot)
        detail = "pixels of no committed frame"
        yield Problem("shard_orphan", path, detail, f"{REPAIR}, or the next `mfmd run`, removes it", path.unlink)
