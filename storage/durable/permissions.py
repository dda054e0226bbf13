"""Files for others: what mfmd writes outside its state directory has the permissions that the operator's umask allows.

Every command starts with a umask that keeps others out of the state directory (`daemon.cli.main`), because frames are
private images. Masks, exports and mirrors are made for others.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

OPERATORS_UMASK = "_MFMD_UMASK"
"""Environment variable with the umask that the operator started the command with (octal); children inherit it."""


@contextmanager
def shared_files() -> Iterator[None]:
    """Make files and directories with the operator's umask. A umask is that of all threads of the process."""
    umask = _operators_umask()
    if umask is None:
        yield
        return
    private = os.umask(umask)
    try:
        yield
    finally:
        os.umask(private)


def share(path: Path, mode: int) -> None:
    """Give a path the rights in `mode` that the operator's umask allows; a setgid bit from the folder above stays."""
    umask = _operators_umask()
    if umask is not None:
        path.chmod((path.stat().st_mode & 0o7000) | (mode & ~umask))


def _operators_umask() -> int | None:
    umask = os.environ.get(OPERATORS_UMASK)
    return None if umask is None else int(umask, 8)
