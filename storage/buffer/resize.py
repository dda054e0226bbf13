"""Change the frame size of a buffer: a second buffer is built beside it and replaces it.

state/.resize.partial/buffer/    the new buffer while it is built
state/.resized/buffer/           the new buffer when it is complete: it then replaces the old one, also after a kill
state/.resized/old/              the old buffer, until it is removed
"""

import shutil
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from configs.buffer import BufferSettings
from storage import durable
from storage.buffer import files as buffer_files
from storage.buffer.catalog import Catalog
from storage.buffer.catalog_records import FrameRecord
from storage.buffer.lost import JOURNAL
from storage.buffer.pixel_array import PixelArray
from storage.errors import BufferBusy, CorruptBuffer, StorageError
from storage.layout import StateLayout
from storage.media.images import Fit, FittedFrame, crc32_of, fit_frame, fitted_size

Row = tuple[int, int, int, int, str, int]
"""What changes of a frame: slot, valid height, valid width, checksum and filter; and its id."""


def resize_buffer(
    layout: StateLayout, wanted: BufferSettings, on_progress: Callable[[int, int], None] = lambda _done, _all: None
) -> int:
    """Make the buffer's frames `wanted.height` x `wanted.width`, keeping the newest `wanted.capacity_frames`.

    Valid regions are rescaled from the stored frames, not from the originals: enlarging adds no detail, and shrinking
    loses detail permanently. Ids, digests, files and times stay; the observer processes every frame again. Returns the
    number of frames kept. A crash leaves the old buffer or the new one, intact.

    Raises AlreadyRunning while a daemon or a round works there, BufferBusy when a round leases frames, CorruptBuffer
    when a frame cannot be read, StorageError when there is no buffer or it cannot be renamed.
    """
    with ExitStack() as held:
        if layout.root.is_dir():
            held.enter_context(layout.lock())
        catalog = held.enter_context(closing(Catalog.open(layout.catalog, writable=False)))
        held.enter_context(buffer_files.claim(layout))
        _check(layout, catalog)
        home = layout.root / buffer_files.FRESH
        try:
            kept = _build(layout, catalog, StateLayout(home), wanted, on_progress)
            durable.publish_directory(home, layout.root / buffer_files.RESIZED)
        except BaseException:
            shutil.rmtree(home, ignore_errors=True)
            raise
        buffer_files.take_over(layout)
        return kept


def _check(layout: StateLayout, catalog: Catalog) -> None:
    if layout.buffer.is_symlink():  # the link would move, and the frames behind it would stay
        raise StorageError(f"{layout.buffer} is a link; replace it by its target folder")
    if layout.buffer.is_mount():
        raise StorageError(f"{layout.buffer} is a mount point, which cannot be renamed; mount {layout.root} instead")
    leases = catalog.leases()
    if leases:
        raise BufferBusy(
            f"{catalog.path}: rounds {leases} hold frames of this size; let `mfmd adapt` or `mfmd run` bring them to "
            "their end, then try again"
        )


def _build(
    layout: StateLayout,
    catalog: Catalog,
    fresh: StateLayout,
    wanted: BufferSettings,
    on_progress: Callable[[int, int], None],
) -> int:
    """Build the whole new buffer under `fresh`."""
    old = PixelArray(layout.frames_zarr, buffer_files.ARRAY)
    durable.make_directory(fresh.buffer)
    array = buffer_files.open_array(fresh, wanted, writable=True)
    catalog.backup(fresh.catalog)
    records = catalog.records()[-wanted.capacity_frames :]
    rows = []
    for slot, record in enumerate(records):
        rows.append(_rescale(old, record, array, slot, wanted))
        on_progress(slot + 1, len(records))
    _write_rows(fresh.catalog, records, rows)
    if (layout.buffer / JOURNAL).exists():
        shutil.copyfile(layout.buffer / JOURNAL, fresh.buffer / JOURNAL)
    return len(records)


def _rescale(old: PixelArray, record: FrameRecord, array: PixelArray, slot: int, wanted: BufferSettings) -> Row:
    """Rescale one frame into its slot; return its row."""
    pixels = old.read(record.slot)
    if crc32_of(pixels) != record.crc32:
        raise CorruptBuffer(
            f"{old.shard_path(record.slot)}: frame {record.id} ({record.name}) does not match its checksum; "
            "`mfmd check --read-data --repair` removes it"
        )
    frame = _refitted(pixels, record, wanted)
    array.write(slot, frame.pixels)
    crc32 = crc32_of(frame.pixels)
    return slot, frame.valid_height, frame.valid_width, crc32, wanted.advanced.resample, record.id


def _refitted(pixels: NDArray[np.uint8], record: FrameRecord, wanted: BufferSettings) -> FittedFrame:
    """Scale the valid region of a stored frame into the new frame; a squashed image gets its own aspect back."""
    image, size, fit = (
        pixels[: record.valid_height, : record.valid_width],
        (wanted.height, wanted.width),
        Fit.of(wanted),
    )
    if fit.mode == "squash" or image.shape != pixels.shape:
        return fit_frame(image, *size, fit)
    inner = fitted_size(record.source_height, record.source_width, *size)  # the region of a whole frame tells no aspect
    frame = np.zeros((*size, 3), np.uint8)
    frame[: inner[0], : inner[1]] = fit_frame(image, *inner, Fit("squash", fit.resample)).pixels
    return FittedFrame(frame, *inner)


def _write_rows(path: Path, kept: Sequence[FrameRecord], rows: Sequence[Row]) -> None:
    with closing(Catalog.open(path, writable=True)) as catalog:
        with catalog.transaction() as connection:
            first = kept[0].id if kept else 0
            connection.execute("DELETE FROM frames WHERE id < ?", (first,))
            connection.execute("UPDATE frames SET slot = -1 - slot")  # slots are unique at every step
            connection.executemany(
                "UPDATE frames SET slot = ?, valid_height = ?, valid_width = ?, crc32 = ?, resample = ? WHERE id = ?",
                rows,
            )
        catalog.vacuum()
