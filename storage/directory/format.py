"""`format.json`: one version for the whole state directory; `upgrade.py` has the steps from each older one.

A directory without the file has format 1. Whatever a later mfmd writes that an older one could misread (a field of a
record, a table, a folder) gives the directory a higher number: then the older one refuses it as a whole, before it
touches any file.
"""

import time
from importlib import metadata
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from storage import durable
from storage.errors import NewerFormat, StorageError
from storage.layout import StateLayout

FORMAT = 3
"""Format of the directories that this mfmd writes."""


class StateFormat(BaseModel):
    """Content of `format.json`. Fields that a newer mfmd adds are ignored: the number decides."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    format: int
    """Format of the directory."""
    mfmd: str
    """The mfmd that gave it this format."""
    at: float = 0.0
    """When (Unix seconds)."""


def this_format(number: int = FORMAT) -> StateFormat:
    """Return what this mfmd says of a directory of format `number`."""
    return StateFormat(format=number, mfmd=metadata.version("mfmd"), at=time.time())


def parse_format(data: bytes, where: Path) -> int:
    """Return the format that the content of a `format.json` names. Raises NewerFormat, ValueError for damage."""
    found = StateFormat.model_validate_json(data)
    if found.format > FORMAT:
        raise NewerFormat(
            f"{where}: format {found.format} of mfmd {found.mfmd}; this is mfmd {metadata.version('mfmd')}, which "
            f"reads up to {FORMAT}: use mfmd {found.mfmd} or later, or restore a backup; nothing was changed"
        )
    return found.format


def read_format(layout: StateLayout) -> int:
    """Return the format of a state directory. Raises NewerFormat, StorageError when the file is damaged."""
    path = layout.format_file
    try:
        return parse_format(path.read_bytes(), path)
    except (FileNotFoundError, NotADirectoryError):
        return 1
    except ValueError as error:
        remedy = "`mfmd check --repair` removes it, and the next `mfmd run` writes it again"
        raise StorageError(f"{path}: not the format of a state directory; {remedy}") from error


def refuse_newer(layout: StateLayout) -> None:
    """Raise NewerFormat when a newer mfmd gave this directory its format; changes nothing."""
    try:
        read_format(layout)
    except NewerFormat:
        raise
    except (StorageError, OSError):
        return  # `prepare` and `mfmd check` say so


def begin(layout: StateLayout) -> None:
    """Write the format of a directory that holds nothing yet; another one gets it from `prepare`."""
    if not any(path.exists() for path in (layout.checkpoints, layout.buffer, layout.format_file)):
        durable.make_directory(layout.root)
        durable.write_record(layout.format_file, this_format())
