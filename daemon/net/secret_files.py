"""Files with secrets: who but their owner can read or replace them."""

import os
import stat
from pathlib import Path

from configs.settings import Settings
from storage.layout import StateLayout

READ_OR_CHANGE = 0o027
"""What nobody else may do with a secret: others nothing, and its group only read it."""
REPLACE = 0o022
"""What nobody else may do with a folder above it, unless the sticky bit keeps them from each other's files."""


NEW_SECRET = (
    "take the rights away (`chmod 600` the file, `chmod go-w` the folder), then put a new secret in its place; without "
    "run/control.token `mfmd run` makes one"
)
"""What to do about an exposed one."""
SECRETS = ("control_token", "control_key", "serving_token", "serving_key")


def secret_files(settings: Settings) -> dict[str, Path]:
    """Return the files with secrets that the settings name, by one of `SECRETS`; the generated token too."""
    control, serving = settings.control, settings.serving
    own = StateLayout(settings.state).token_file
    found = {
        "control_token": control.token_file or (own if control.token is None else None),
        "control_key": control.key,
        "serving_token": serving.token_file if serving.enabled else None,
        "serving_key": serving.key if serving.enabled else None,
    }
    return {name: path for name, path in found.items() if path is not None}


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
