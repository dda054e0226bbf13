"""Choose how new files are found: by kernel events and a rescan, or by the rescan alone, and why."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from daemon.runtime.activity import Mode, Reason

MOUNT_TABLE = Path("/proc/self/mountinfo")
NETWORK_TYPES = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "beegfs", "ceph", "coda", "davfs", "glusterfs", "gpfs",
     "lustre", "ncpfs", "ocfs2", "orangefs", "prl_fs", "vboxsf", "virtiofs", "vmhgfs", "fuse.sshfs", "fuse.glusterfs",
     "fuse.ceph", "fuse.s3fs", "fuse.rclone", "fuse.gcsfuse", "fuse.mount-s3", "fuse.grpcfuse", "fuse.vmhgfs-fuse"}
)  # fmt: skip
"""File system types whose files can change without an inotify event here, and whose locks SQLite cannot trust."""
MEMORY_TYPES = frozenset({"tmpfs", "ramfs"})
"""File system types that are lost at a restart."""


@dataclass(frozen=True, slots=True)
class WatchMode:
    """The mode in force."""

    mode: Mode = "polling"
    """events: the kernel wakes the watcher, the rescan finds the rest; polling: only the rescan."""
    reason: Reason = "no_folder"
    """configured: `watch.mode` says so; local: a file system that sends events; silent_mount: one that does not;
    refused: the kernel gave no watch; no_folder: there is nothing to listen to."""
    file_system: str = ""
    """Type of the folder's file system, for example `ext4`; empty where it is not known."""

    @property
    def trouble(self) -> str:
        """What an operator should know about this choice; empty when it fits the file system."""
        if self.mode == "events" and is_silent(self.file_system):
            return (
                f"watch.mode is events, but {self.file_system} sends none for files that other machines write: "
                "the rescan finds those; set watch.mode: auto"
            )
        return ""


def choose_mode(wanted: Literal["auto", "events", "polling"], folder: Path) -> WatchMode:
    """Return the mode for a folder that exists. `auto` polls where files can arrive without an event."""
    kind = file_system_of(folder) or ""
    if wanted != "auto":
        return WatchMode(wanted, "configured", kind)
    return WatchMode("polling", "silent_mount", kind) if is_silent(kind) else WatchMode("events", "local", kind)


def is_silent(kind: str | None) -> bool:
    """Return whether files can arrive without an event: network mounts, and most of FUSE.

    `fuseblk` is a local disk (NTFS) that changes through this mount only, so its events are complete.
    """
    return kind is not None and (kind in NETWORK_TYPES or kind == "fuse" or kind.startswith("fuse."))


def file_system_of(path: Path, table: Path | None = None) -> str | None:
    """Return the type of the file system under `path`, which need not exist; None without a mount table."""
    try:
        text = (table or MOUNT_TABLE).read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return None
    mounts = [_mount(line) for line in text.split("\n") if " - " in line]
    target = path.expanduser().resolve()
    fitting = [
        (len(point.parts), order, kind) for order, (point, kind) in enumerate(mounts) if target.is_relative_to(point)
    ]
    return max(fitting)[2] if fitting else None


def _mount(line: str) -> tuple[Path, str]:
    """Return mount point and type of a line of mountinfo (man 5 proc).

    For example `36 35 98:0 /mnt1 /mnt2 rw master:1 - ext3 /dev/root rw`.
    """
    left, _, right = line.partition(" - ")
    point = left.split(" ")[4]
    for code, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        point = point.replace(code, character)
    return Path(point), right.split(" ")[0]
