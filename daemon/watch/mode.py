"""Choose how new files are found: by kernel events and a rescan, or by the rescan alone, and why."""

from pathlib import Path
from typing import Literal

import psutil

from daemon.runtime.activity import Mode, Reason, WatchActivity

NETWORK_TYPES = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "beegfs", "ceph", "coda", "davfs", "glusterfs", "gpfs",
     "lustre", "ncpfs", "ocfs2", "orangefs", "prl_fs", "vboxsf", "virtiofs", "vmhgfs", "fuse.sshfs", "fuse.glusterfs",
     "fuse.ceph", "fuse.s3fs", "fuse.rclone", "fuse.gcsfuse", "fuse.mount-s3", "fuse.grpcfuse", "fuse.vmhgfs-fuse"}
)  # fmt: skip
"""File system types whose files can change without an inotify event here, and whose locks SQLite cannot trust."""
MEMORY_TYPES = frozenset({"tmpfs", "ramfs"})
"""File system types that are lost at a restart."""


def choose_mode(wanted: Literal["auto", "events", "polling"], folder: Path) -> WatchActivity:
    """Return how to watch a folder that exists. `auto` polls where files can arrive without an event."""
    kind = file_system_of(folder) or ""
    mode: Mode = "polling" if wanted == "polling" or (wanted == "auto" and is_silent(kind)) else "events"
    automatic: Reason = "local" if mode == "events" else "silent_mount"
    doubt = (
        f"watch.mode is events, but {kind} sends none for files that other machines write: "
        "the rescan finds those; set watch.mode: auto"
    )
    return WatchActivity(
        state="watching",
        mode=mode,
        mode_reason=automatic if wanted == "auto" else "configured",
        file_system=kind,
        detail=doubt if mode == "events" and is_silent(kind) else "",
    )


def is_silent(kind: str | None) -> bool:
    """Return whether files can arrive without an event: network mounts, and most of FUSE.

    `fuseblk` is a local disk (NTFS) that changes through this mount only, so its events are complete.
    """
    return kind is not None and (kind in NETWORK_TYPES or kind == "fuse" or kind.startswith("fuse."))


def file_system_of(path: Path) -> str | None:
    """Return the type of the file system under `path`, which need not exist; None without a mount table."""
    try:
        mounts = psutil.disk_partitions(all=True)
    except OSError:
        return None
    target = path.expanduser().resolve()
    fitting = [mount for mount in mounts if target.is_relative_to(mount.mountpoint)]
    depths = [(len(Path(mount.mountpoint).parts), order, mount.fstype) for order, mount in enumerate(fitting)]
    return str(max(depths)[2]) if depths else None
