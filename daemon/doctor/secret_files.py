"""Files with secrets: who but their owner can read or replace them."""

import os
import stat
from pathlib import Path

READ_OR_CHANGE = 0o027
"""What nobody else may do with a secret: others nothing, and its group only read it."""
REPLACE = 0o022
"""What nobody else may do with a folder above it, unless the sticky bit keeps them from each other's files."""


def exposure(path: Path) -> str:
    """Return who else can read, change or replace a secret file; empty when nobody can, or there is no file.

    Links are followed.
    """
    path = path.resolve()
    if not path.exists():
        return ""
    owner, mode = path.stat().st_uid, stat.S_IMODE(path.stat().st_mode)
    if mode & READ_OR_CHANGE:
        return f"{path} has mode {mode:04o}: other users can read or change it"
    for folder in path.parents:
        above = folder.stat()
        if above.st_mode & REPLACE and not above.st_mode & stat.S_ISVTX:
            return f"{folder} has mode {stat.S_IMODE(above.st_mode):04o}: other users can replace {path.name}"
        if above.st_uid not in (0, owner, os.geteuid()):
            return f"{folder} belongs to another user, who can replace {path.name}"
    return ""
