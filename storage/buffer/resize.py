"""Another frame size for a buffer: a second buffer is built beside it, and the two change places in one step.

state/.resize.partial/buffer/    the new buffer while it is built; after the exchange, the old one until it is removed
"""

import errno
import shutil
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from pathlib import Path

from configs.settings import BufferSettings
from storage import durable
from storage.buffer import files as buffer_files
from storage.buffer.catalog import Catalog
from storage.buffer.catalog_records import FrameRecord
from storage.buffer.lost import JOURNAL
from storage.buffer.pixel_array import PixelArray
from storage.errors import BufferBusy, CorruptBuffer, StorageError
from storage.layout import StateLayout
from storage.media.images import crc32_of, fit_frame

CANNOT_EXCHANGE = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EXDEV)
"""What the system says where two directories cannot change places; then nothing moved."""


def resize_buffer(
    layout: StateLayout, wanted: BufferSettings, on_progress: Callable[[int, int], None] = lambda _done, _all: None
) -> int:
    """Make the buffer's frames `wanted.height` x `wanted.width`, keeping the newest `wanted.capacity_frames`.

    Valid regions are rescaled from the stored frames, not from the originals: enlarging adds no detail, and shrinking
    loses it for good. Ids, digests, files and times stay; the observer looks at every frame again. Returns the frames
    kept. A crash leaves the old buffer or the new one, whole.

    Raises AlreadyRunning while a daemon or a round works there, BufferBusy when a round holds frames, CorruptBuffer
    when a frame cannot be read, StorageError when there is no buffer or the file system cannot exchange directories.
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
            durable.fsync_tree(home)
        except BaseException:
            shutil.rmtree(home, ignore_errors=True)
            raise
        _exchange(home, layout.buffer)
        shutil.rmtree(home, ignore_errors=True)
        return kept


def _check(layout: StateLayout, catalog: Catalog) -> None:
    if layout.buffer.is_symlink():  # the link would change places, and the frames behind it stay where they are
        raise StorageError(
            f"{layout.buffer} is a link, and only folders change places; put the folder that it leads to there instead"
        )
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
    """The whole new buffer under `fresh`."""
    old = PixelArray(layout.frames_zarr, buffer_files.ARRAY, writable=False)
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


def _rescale(
    old: PixelArray, record: FrameRecord, array: PixelArray, slot: int, wanted: BufferSettings
) -> tuple[int, int, int, int, int]:
    """One frame into its slot; returns its row: slot, valid height, valid width, checksum, id."""
    pixels = old.read(record.slot)
    if crc32_of(pixels) != record.crc32:
        raise CorruptBuffer(
            f"{old.shard_path(record.slot)}: frame {record.id} ({record.name}) does not match its checksum; "
            "`mfmd check --read-data --repair` gives it up"
        )
    frame = fit_frame(pixels[: record.valid_height, : record.valid_width], wanted.height, wanted.width)
    array.write(slot, frame.pixels)
    return slot, frame.valid_height, frame.valid_width, crc32_of(frame.pixels), record.id


def _write_rows(path: Path, kept: Sequence[FrameRecord], rows: Sequence[tuple[int, int, int, int, int]]) -> None:
    with closing(Catalog.open(path, writable=True)) as catalog:
        with catalog.transaction() as connection:
            first = kept[0].id if kept else 0
            connection.execute("DELETE FROM frames WHERE id < ?", (first,))
            connection.execute("UPDATE frames SET slot = -1 - slot")  # slots are unique at every step
            connection.executemany(
                "UPDATE frames SET slot = ?, valid_height = ?, valid_width = ?, crc32 = ? WHERE id = ?", rows
            )
        catalog.vacuum()


def _exchange(home: Path, current: Path) -> None:
    """The two buffers change places, durably.

    An error after that (fsync, no file handle for it) leaves both: which one has the name after a power cut is not
    known then, and the next writer removes the other.
    """
    try:
        durable.exchange_directories(StateLayout(home).buffer, current)
    except OSError as error:
        if error.errno not in CANNOT_EXCHANGE:
            raise
        shutil.rmtree(home, ignore_errors=True)
        raise StorageError(
            f"{current}: this file system cannot exchange two directories in one step ({error.strerror}); "
            "put `state` on a local disk (ext4, xfs, btrfs)"
        ) from error
