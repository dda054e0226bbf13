"""Files of the frame buffer: its writer's lock, its zarr array, and their match with the configuration."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from configs.buffer import BufferSettings
from storage import durable
from storage.buffer.frame_writer import group_frames
from storage.buffer.pixel_array import PixelArray
from storage.errors import AlreadyRunning, BufferMismatch, CorruptBuffer, StorageError
from storage.failpoints import step
from storage.layout import StateLayout

ARRAY = "frames"
FRESH = f".resize{durable.PARTIAL}"
"""Folder in which a buffer of another frame size is built (`resize.py`), in the state directory."""
RESIZED = ".resized"
"""Folder of the complete new buffer until it replaces the old one, in the state directory."""
ABOUT = (
    "Target frames, RGB, scaled to fit, top-left, zero elsewhere. Only slots (index `frame`) that table `frames` of "
    "../catalog.sqlite names hold one; it also has valid_height and valid_width (the part that is image), name, times."
)
"""Description of the array (its attribute `long_name`)."""


@contextmanager
def claim(layout: StateLayout) -> Iterator[None]:
    """Become the one writer of this buffer. Raises AlreadyRunning: a second one would remove unfinished frames."""
    _finish_resize(layout)
    durable.make_directory(layout.buffer)
    with durable.exclusive_lock(
        layout.buffer / ".lock",
        busy=lambda holder: f"{layout.buffer}: process {holder} already writes to this buffer",
    ):
        shutil.rmtree(layout.root / FRESH, ignore_errors=True)
        durable.remove_partials(layout.buffer)
        yield


def take_over(layout: StateLayout) -> None:
    """Replace the old buffer by the complete one in `RESIZED`; may be repeated after a kill at any moment.

    Each name is on the disk before the next step, and the old buffer is removed last. Raises OSError, DurabilityLost.
    """
    home = layout.root / RESIZED
    fresh, old = home / "buffer", home / "old"
    if fresh.is_dir():
        if layout.buffer.is_dir() and not old.is_dir():
            durable.move_directory(layout.buffer, old)
        durable.move_directory(fresh, layout.buffer)
    if home.is_dir():
        durable.fsync_directory(layout.root)  # a kill may have come before it
        shutil.rmtree(home, ignore_errors=True)


def _finish_resize(layout: StateLayout) -> None:
    """Finish a resize that was killed. Raises AlreadyRunning when it is still running."""
    home = layout.root / RESIZED
    if home.is_dir():
        if any(durable.is_locked(buffer / ".lock") for buffer in (layout.buffer, home / "old")):
            raise AlreadyRunning(f"{layout.buffer}: another process is resizing it")
        take_over(layout)


def open_array(layout: StateLayout, settings: BufferSettings, *, writable: bool) -> PixelArray:
    """Open the array of frames; a writer creates it if it is missing and grows it to the configured capacity.

    Raises StorageError, CorruptBuffer or BufferMismatch.
    """
    if not layout.frames_zarr.exists():
        if not writable:
            raise StorageError(f"{layout.buffer}: no frame buffer yet; `mfmd run` creates it")
        _create(layout, settings)
    array = PixelArray(layout.frames_zarr, ARRAY)
    _compare(layout, array, settings)
    if writable:
        _check_catalog(layout, array)
    slots = _slots(settings)
    if writable and array.shape[0] < slots:
        array.grow(slots)
    return array


def _check_catalog(layout: StateLayout, array: PixelArray) -> None:
    """Refuse to write pixels without a catalog: they would count as leftovers of a crash and be removed."""
    if not durable.size_of(layout.catalog) and array.shard_indices():
        raise CorruptBuffer(
            f"{layout.catalog} is missing, but {array.folder} holds pixels: restore it from a backup, "
            f"or remove {layout.buffer} and start with an empty buffer"
        )


def _slots(settings: BufferSettings) -> int:
    return settings.capacity_frames + group_frames(settings)


def _create(layout: StateLayout, settings: BufferSettings) -> None:
    if layout.catalog.exists():
        raise CorruptBuffer(
            f"{layout.frames_zarr} is missing, but {layout.catalog} exists: restore it from a backup, "
            "or remove the catalog too and start with an empty buffer"
        )
    from storage.buffer.zarr_metadata import create_array  # late: only a new buffer needs zarr

    temporary = layout.buffer / f".frames{durable.PARTIAL}"
    create_array(
        temporary,
        ARRAY,
        (_slots(settings), settings.height, settings.width, 3),
        tile=settings.advanced.tile,
        fill=0,
        attributes={"frame_height": settings.height, "frame_width": settings.width},
        about=ABOUT,
        compression=settings.advanced.compression,
    )
    step("array.made")
    durable.publish_directory(temporary, layout.frames_zarr)


def _compare(layout: StateLayout, array: PixelArray, settings: BufferSettings) -> None:
    for name, attribute, wanted in (
        ("height", "frame_height", settings.height),
        ("width", "frame_width", settings.width),
        ("advanced.tile", "tile", settings.advanced.tile),
    ):
        found = array.attributes.get(attribute)
        if found != wanted:
            raise BufferMismatch(
                f"{layout.frames_zarr}: made with buffer.{name} {found}, the configuration says {wanted}; "
                f"set it back, resize the buffer (`mfmd buffer resize`), or remove {layout.buffer} to start empty"
            )
