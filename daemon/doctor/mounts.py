"""Which file system a path lies on."""

from pathlib import Path

MOUNT_TABLE = Path("/proc/self/mountinfo")
NETWORK_TYPES = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "glusterfs", "lustre", "ncpfs", "vboxsf", "virtiofs",
     "fuse.sshfs", "fuse.glusterfs", "fuse.ceph", "fuse.s3fs", "fuse.rclone", "fuse.gcsfuse", "fuse.mount-s3"}
)  # fmt: skip
"""File system types whose files can change without an inotify event here, and whose locks SQLite cannot trust."""
MEMORY_TYPES = frozenset({"tmpfs", "ramfs"})
"""File system types that are gone after a restart."""


def file_system_of(path: Path, table: Path = MOUNT_TABLE) -> str | None:
    """Type of the file system under `path`, which need not exist; None where there is no mount table."""
    try:
        lines = table.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    mounts = [_mount(line) for line in lines]
    target = path.expanduser().resolve()
    fitting = [
        (len(point.parts), order, kind) for order, (point, kind) in enumerate(mounts) if target.is_relative_to(point)
    ]
    return max(fitting)[2] if fitting else None


def _mount(line: str) -> tuple[Path, str]:
    """Mount point and type of one line, `36 35 98:0 /mnt1 /mnt2 rw master:1 - ext3 /dev/root rw` (man 5 proc)."""
    left, _, right = line.partition(" - ")
    point = left.split()[4]
    for code, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        point = point.replace(code, character)
    return Path(point), right.split()[0]
