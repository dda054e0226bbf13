"""Check whether every committed frame has its pixels, and no other file or observation lies among them."""

import time
from collections.abc import Iterator
from functools import partial

from storage import durable
from storage.buffer.catalog import Catalog
from storage.buffer.catalog_records import FrameRecord
from storage.buffer.files import ARRAY
from storage.buffer.fits import is_squashed
from storage.buffer.lost import give_up
from storage.buffer.observations import Observations
from storage.buffer.pixel_array import PixelArray
from storage.checking.problem import REPAIR, RESTORE, Problem, Scope, change, newer
from storage.errors import CorruptBuffer, NewerRecord, StorageError
from storage.layout import StateLayout
from storage.media.images import crc32_of, fitted_size

SET_REGION = "UPDATE frames SET valid_height = ?, valid_width = ? WHERE id = ?"


def check_pixels(scope: Scope, catalog: Catalog) -> Iterator[Problem]:
    """Return problems of the zarr array and of its frames."""
    layout, records = scope.layout, catalog.records()
    try:
        array = PixelArray(layout.frames_zarr, ARRAY)
    except CorruptBuffer as error:
        if records or layout.frames_zarr.exists():
            code = "pixels_unreadable" if layout.frames_zarr.exists() else "pixels_missing"
            yield Problem(code, layout.frames_zarr, f"{error}; the catalog has {len(records)} frames", RESTORE)
        return
    yield from _regions(array, catalog, records)
    outside = [record for record in records if record.slot >= array.shape[0]]
    if outside:  # the metadata of the array is older than the catalog
        count = max(record.slot for record in outside) + 1
        detail = f"has {array.shape[0]} slots, {len(outside)} frames are in slots up to {count - 1}"
        yield Problem("slots_missing", array.folder, detail, REPAIR, partial(_grow, layout, count))
    for record in records:
        if record not in outside:
            yield from _frame(scope, array, catalog, record)
    for slot in sorted(set(array.shard_indices()) - catalog.slots()):
        path, remedy = array.shard_path(slot), f"{REPAIR}, or the next `mfmd run`, removes it"
        yield Problem("shard_orphan", path, "pixels of no committed frame", remedy, path.unlink)


def check_observations(scope: Scope, catalog: Catalog) -> Iterator[Problem]:
    """Return problems of the observer's database; all of it can be computed again."""
    path, observed = scope.layout.observations, set[int]()
    if not path.exists():
        return
    try:
        with Observations.open(path, writable=False) as observations:
            damage = observations.damage()
            if not damage:
                observed = observations.observed()
    except NewerRecord as error:
        yield newer(path, error)
        return
    except StorageError as error:
        damage = str(error)
    frames = {record.id for record in catalog.records()}
    if gone := len(observed - frames):
        remedy, repair = f"{REPAIR}, or the observer, removes them", partial(_forget, scope.layout, frames)
        yield Problem("observation_orphan", path, f"{gone} observations of evicted frames", remedy, repair)
    if damage:
        remedy = f"{REPAIR} removes it; the observer observes every frame again"
        yield Problem("observations_damaged", path, damage, remedy, partial(_remove, scope.layout))


def _regions(array: PixelArray, catalog: Catalog, records: list[FrameRecord]) -> Iterator[Problem]:
    """Report valid regions that leave the frame; they follow from the sizes of image and frame, and the others' fit."""
    height, width = array.shape[1:3]
    squashed = any(is_squashed(record, height, width) for record in records)
    for record in records:
        if 1 <= record.valid_height <= height and 1 <= record.valid_width <= width:
            continue
        fitted = fitted_size(record.source_height, record.source_width, height, width)
        region = (height, width) if squashed else fitted
        repair = partial(change, catalog.path, SET_REGION, values=(*region, record.id))
        said = f"{record.valid_height}x{record.valid_width} pixels are said to be image"
        detail = f"frame {record.id} ({record.name}): {said}, in a frame of {height}x{width}"
        yield Problem("valid_region", catalog.path, detail, REPAIR, repair)


def _grow(layout: StateLayout, count: int) -> None:
    PixelArray(layout.frames_zarr, ARRAY).grow(count)


def _frame(scope: Scope, array: PixelArray, catalog: Catalog, record: FrameRecord) -> Iterator[Problem]:
    path = array.shard_path(record.slot)
    if not path.is_file():
        code, detail = "frame_missing", "its pixels are missing"
    else:
        code, detail = "frame_damaged", _damage(scope, array, record)
    if detail and catalog.holds(record):  # else it was evicted meanwhile
        remedy = f"{REPAIR} removes it; if its file is still in the drop folder, it is ingested again"
        repair = partial(_give_up, scope.layout, record, array, f"{path.name}: {detail}")
        yield Problem(code, path, f"frame {record.id} ({record.name}): {detail}", remedy, repair)


def _give_up(layout: StateLayout, record: FrameRecord, array: PixelArray, reason: str) -> None:
    give_up(layout, record, reason, time.time())
    array.shard_path(record.slot).unlink(missing_ok=True)


def _damage(scope: Scope, array: PixelArray, record: FrameRecord) -> str:
    """Return what is wrong with a frame's pixels; without reading them, only an empty file is detected."""
    if not scope.read_data:
        return "" if array.shard_path(record.slot).stat().st_size else "its file is empty"
    try:
        pixels = array.read(record.slot)
    except CorruptBuffer as error:
        return str(error)
    return "" if crc32_of(pixels) == record.crc32 else "its pixels do not match their checksum"


def _forget(layout: StateLayout, frames: set[int]) -> None:
    with Observations.open(layout.observations, writable=True) as observations:
        observations.forget_all_but(frames)


def _remove(layout: StateLayout) -> None:
    for suffix in ("", "-wal", "-shm"):
        durable.remove_file(layout.observations.with_name(layout.observations.name + suffix))
