"""Unpack a zip archive that a person made or sent: plain files only, each once, all below one folder.

`zipfile` alone would move a member with `..` to another folder, and let the last of two members with one name win:
then a mask would silently be that of another image, or another mask.
"""

import lzma
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from storage.errors import CanaryRefused

MOST_BYTES = 4 * 2**30
"""Most bytes that an archive may unpack to."""
MOST_MEMBERS = 10_000
"""Most files and folders in an archive."""
BROKEN = (OSError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, RuntimeError, ValueError, struct.error)
"""What reading a damaged or encrypted archive raises, OSError also for damage by bzip2."""
PLAIN = (0, stat.S_IFREG, stat.S_IFDIR)
"""Kinds of members; 0 where the system that made the archive notes none."""


def unpack(export: Path, folder: Path) -> None:
    """Unpack an archive into an empty folder.

    Raises CanaryRefused for a damaged one, and before anything is written for one that is too large or has a member
    that is no plain file or stands there twice.
    """
    try:
        with zipfile.ZipFile(export) as archive:
            _check(export, archive.infolist())
            archive.extractall(folder)
    except BROKEN as error:
        raise CanaryRefused(f"{export}: no zip archive that can be read: {error}; export it again") from error


def _check(export: Path, members: list[zipfile.ZipInfo]) -> None:
    if len(members) > MOST_MEMBERS:
        raise CanaryRefused(f"{export}: holds more than {MOST_MEMBERS} files; send them in parts")
    if sum(item.file_size for item in members) > MOST_BYTES:
        raise CanaryRefused(f"{export}: unpacks to more than {MOST_BYTES / 2**30:.0f} GiB; send it in parts")
    _check_names(export, members)


def _check_names(export: Path, members: Iterable[zipfile.ZipInfo]) -> None:
    seen = set[PurePosixPath]()
    for item in members:
        path = PurePosixPath(item.filename)
        leaves = path.is_absolute() or ".." in path.parts or "\\" in item.filename
        if leaves or stat.S_IFMT(item.external_attr >> 16) not in PLAIN:
            raise CanaryRefused(
                f"{export}: {item.filename!r} is no plain file below one folder: it is a link, or its name is absolute "
                "or has .. or a backslash; pack the folder again"
            )
        if path in seen:
            raise CanaryRefused(f"{export}: {item.filename!r} stands there twice; pack the folder again, with one")
        seen.add(path)
