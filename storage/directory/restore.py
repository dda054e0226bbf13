"""Restore a backup into an empty state directory: unpack it beside the final names, then move all of it."""

import hashlib
import io
import lzma
import shutil
import tarfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import IO

from storage import durable
from storage.directory.archive import FORMAT_FILE, MARK, BackupMark, Hashed
from storage.directory.format import parse_format
from storage.errors import BackupRefused
from storage.layout import StateLayout

OnProgress = Callable[[int, int], None]
FRESH = f".restore{durable.PARTIAL}"
"""Folder in the state directory in which a backup is unpacked."""
RESTORED = ".restored"
"""Folder of the complete content until it is moved, in the state directory."""
NOT_WHOLE = (
    tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, ValueError, FileExistsError, NotADirectoryError,
    IsADirectoryError,
)  # fmt: skip
"""What reading a damaged or hand-made tar raises."""


def restore_backup(file: Path, layout: StateLayout, on_progress: OnProgress = lambda done, total: None) -> int:
    """Unpack a backup into a state directory that is missing or empty; return how many files it has.

    `on_progress(done, total)` is called with bytes of the backup. The directory gets all of it or nothing. Raises
    AlreadyRunning while a daemon runs there, BackupRefused when it is not empty or `file` is no whole backup,
    NewerFormat when a newer mfmd wrote the backup, OSError.
    """
    if not layout.locked():
        _require_empty(layout)
    with layout.lock():
        _require_empty(layout)
        fresh = layout.root / FRESH
        shutil.rmtree(fresh, ignore_errors=True)
        try:
            files = _unpack(file, fresh, on_progress)
            durable.publish_directory(fresh, layout.root / RESTORED)
        except BaseException:
            shutil.rmtree(fresh, ignore_errors=True)
            raise
        finish_restore(layout)
    return files


def finish_restore(layout: StateLayout) -> None:
    """Move what a restore unpacked to its place, if it lies there; may be repeated after a kill at any moment."""
    home = layout.root / RESTORED
    if home.is_dir():
        for path in sorted(home.iterdir()):
            durable.move_directory(path, layout.root / path.name)
        home.rmdir()


def _require_empty(layout: StateLayout) -> None:
    found = [path.name for path in layout.root.iterdir()] if layout.root.is_dir() else []
    others = sorted({*found} - {layout.run.name, FRESH, "lost+found"})
    if others:
        raise BackupRefused(
            f"{layout.root}: not empty ({', '.join(others[:3])}); move it away, or set `state` to another directory"
        )


def _unpack(file: Path, folder: Path, on_progress: OnProgress) -> int:
    """Write the files of a backup below `folder`; return how many. Its mark ends it."""
    digest, files, size = hashlib.sha256(), 0, file.stat().st_size
    try:
        with file.open("rb") as raw, tarfile.open(fileobj=raw, mode="r|*") as tar:
            for name, content in _members(tar):
                if name == MARK:
                    mark = BackupMark.model_validate_json(content.read())
                    if (mark.files, mark.sha256) != (files, digest.hexdigest()):
                        raise ValueError("files are missing or damaged")
                    return files
                source = content if files else _format(name, content, file)
                _write(folder / name, Hashed(name, source, digest))
                files += 1
                on_progress(raw.tell(), size)
            raise ValueError("its end is missing")
    except NOT_WHOLE as error:
        raise BackupRefused(f"{file}: no whole backup by `mfmd backup`: {error}; nothing was restored") from error


def _members(tar: tarfile.TarFile) -> Iterator[tuple[str, IO[bytes]]]:
    """Yield name and content of each member. Raises ValueError for what is no plain file below the directory."""
    for member in tar:
        content, path = tar.extractfile(member) if member.type == tarfile.REGTYPE else None, PurePosixPath(member.name)
        plain = str(path) == member.name and not path.is_absolute() and ".." not in path.parts and path.parts
        if content is None or not plain or path.parts[0] == "run":
            raise ValueError(f"{member.name!r} is no file of a state directory")
        yield member.name, content


def _format(name: str, content: IO[bytes], file: Path) -> IO[bytes]:
    """Return the first member again. Raises NewerFormat, or ValueError when it is not the format."""
    if name != FORMAT_FILE:
        raise ValueError(f"it begins with {name!r}, not with {FORMAT_FILE}")
    data = content.read()
    parse_format(data, file)
    return io.BytesIO(data)


def _write(path: Path, content: Hashed) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with durable.named(path), path.open("xb") as target:
        shutil.copyfileobj(content, target, durable.COPY_BYTES)
