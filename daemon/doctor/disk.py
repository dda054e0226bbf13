"""The state directory: writable, on a disk that keeps what it is told, and with room."""

import os
import shutil
import tempfile
import time
from contextlib import closing
from pathlib import Path

from configs.buffer import BufferSettings
from configs.settings import Settings
from daemon.doctor.finding import Finding, fail, ok, warn
from daemon.watch.mode import MEMORY_TYPES, NETWORK_TYPES, file_system_of
from storage.buffer.catalog import Catalog
from storage.directory.format import read_format
from storage.durable import write_bytes
from storage.errors import DurabilityLost, StorageError
from storage.layout import StateLayout

OTHERS = 0o007
"""The rights of other users."""
SLOW_FSYNC_SECONDS = 0.1
COMPRESSED_SHARE = 0.6
"""Size of stored frames relative to raw pixels; photographs measured 0.5-0.65 with zstd level 1 (an estimate)."""


def examine_state(settings: Settings) -> list[Finding]:
    """Return findings about `state`; creates nothing permanent."""
    layout = StateLayout(settings.state)
    place = _nearest_folder(layout.root)
    if not os.access(place, os.W_OK | os.X_OK):
        remedy = "let the user that runs mfmd write there, or set `state` to another folder"
        return [fail("state", f"{place} is not writable", remedy)]
    found = [_state(layout.root), _file_system(place), _fsync(place), _space(place, settings.buffer)]
    return [*found, *_format(layout), *_catalog(layout)]


def _state(root: Path) -> Finding:
    if not root.is_dir():
        return ok("state", f"{root} will be created in {_nearest_folder(root)}")
    if root.stat().st_mode & OTHERS:
        remedy = f"frames are private images: `chmod -R o= {root}`"
        return warn("state", f"{root} exists; every user of this machine can read it", remedy)
    return ok("state", f"{root} exists")


def _format(layout: StateLayout) -> list[Finding]:
    """Return what is wrong with `format.json`; a newer one ends every command before."""
    try:
        read_format(layout)
    except StorageError as error:
        reason, _, remedy = str(error).partition("; ")
        return [fail("format", reason, f"{remedy}; until then it does not start")]
    return []


def _catalog(layout: StateLayout) -> list[Finding]:
    """Return whether the catalog can be read; nothing before there is one. `mfmd check` reads all of it."""
    if not layout.catalog.exists():
        return []
    try:
        with closing(Catalog.open(layout.catalog, writable=False)) as catalog:
            return [ok("catalog", f"{catalog.counts().frames} frames in the buffer")]
    except StorageError as error:
        reason, _, remedy = str(error).partition("; ")
        return [fail("catalog", reason, remedy or "`mfmd check` says more; ingest and rounds wait meanwhile")]


def _nearest_folder(path: Path) -> Path:
    return next(folder for folder in (path, *path.resolve().parents) if folder.is_dir())


def _file_system(place: Path) -> Finding:
    kind = file_system_of(place)
    if kind in NETWORK_TYPES:
        remedy = "set `state` to a local disk: SQLite's write-ahead log and file locks need one"
        return fail("state_mount", f"{kind} is a network file system", remedy)
    if kind in MEMORY_TYPES:
        remedy = "set `state` to a disk if frames and checkpoints must survive a restart"
        return warn("state_mount", f"{kind} is in memory", remedy)
    return ok("state_mount", kind or "unknown file system")


def _fsync(place: Path) -> Finding:
    try:
        with tempfile.TemporaryDirectory(prefix=".mfmd-doctor-", dir=place) as folder:
            began = time.perf_counter()
            write_bytes(Path(folder) / "probe", b"mfmd")
            took = time.perf_counter() - began
    except (OSError, DurabilityLost) as error:
        return fail("fsync", str(error), "check the disk and its mount options")
    detail = f"a durable write takes {1000 * took:.1f} ms"
    if took > SLOW_FSYNC_SECONDS:
        return warn("fsync", detail, "ingest will be slow; use a faster disk for `state`")
    return ok("fsync", detail)


def _space(place: Path, buffer: BufferSettings) -> Finding:
    free = shutil.disk_usage(place).free
    wanted = int(buffer.capacity_frames * buffer.height * buffer.width * 3 * COMPRESSED_SHARE)
    detail = f"{_gib(free)} free; reserve {_gib(buffer.reserve_bytes)}, a full buffer about {_gib(wanted)}"
    if free <= buffer.reserve_bytes:
        remedy = "free space, or lower buffer.reserve_bytes: ingest pauses below the reserve"
        return fail("disk_space", detail, remedy)
    if free < buffer.reserve_bytes + wanted:
        return warn("disk_space", detail, "ingest will pause before the buffer is full; lower buffer.capacity_frames")
    return ok("disk_space", detail)


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"
