"""Which folders of the configuration may not overlap: what mfmd writes, moves or deletes must not be another's.

`docs/reference/configuration.md` has the table.
"""

import fnmatch
import os
import re
from collections.abc import Iterator
from itertools import permutations
from pathlib import Path
from typing import NamedTuple

from pydantic import BaseModel

from configs.errors import ConfigError
from configs.settings import Settings

DROP = "watch.folder"
LABELLED = (
    "source.images", "source.labels", "source.validation_images", "source.validation_labels", "canary.images",
    "canary.labels",
)  # fmt: skip
IMAGES = {"source.images", "source.validation_images", "canary.images"}
"""Folders of images for different uses: what one holds is not of another."""
WRITTEN = {
    "state": "it holds mfmd's own files only",
    "watch.done_folder": "mfmd moves files into it",
    "watch.quarantine": "mfmd moves files into it",
    "masks.folder": "mfmd writes masks into it",
    "publish.triton": "mfmd writes and removes versions in it",
    "publish.huggingface": "mfmd writes and removes versions in it",
}
"""Settings of folders that mfmd writes to -> why nothing else may lie there."""


FILE = "this configuration file"


class _Place(NamedTuple):
    """A path with links resolved, and what it lies in, itself first: each folder with its device and inode."""

    name: str
    path: Path
    chain: tuple[tuple[Path, tuple[int, int] | None], ...]


def check_folders(settings: Settings, file: Path) -> None:
    """Raise ConfigError, naming the settings, when two folders overlap so that files would be lost or misread.

    Also when a folder is a file. `file` holds the settings. Links and mounts are followed. A folder inside the drop
    folder may stay where that is not searched: below an ignored name, or with `watch.advanced.recursive: false`.
    """
    for place in _places(settings):
        files = [up for up, _ in place.chain if os.path.isfile(up)]  # noqa: PTH113 - that of Path may raise
        if files and place.name in (DROP, *WRITTEN, *LABELLED):
            raise ConfigError(f"{file}: {place.name}: {files[0]} is a file; name a folder")
    if found := overlap(settings, file):
        raise ConfigError(f"{file}: {found}")


def _places(settings: Settings) -> list[_Place]:
    return [_place(name, path) for name, path in _paths(settings, "")]


def overlap(settings: Settings, file: Path | None = None) -> str:
    """Return which folders overlap now, and the harm; empty when none. Links may be turned any time."""
    places = _places(settings) + ([_place(FILE, file)] if file else [])
    for inner, outer in permutations(places, 2):
        inside = _inside(inner, outer)
        if inside is not None and _harmful(inner.name, outer.name, inside, settings):
            how = "is the same folder as" if inside == Path() else "lies in"
            why = WRITTEN.get(outer.name, f"all in it is taken as {'new' if outer.name == DROP else 'labelled'} images")
            return f"{inner.name}: {inner.path} {how} {outer.name} {outer.path}: {why}; put them side by side"
    return ""


def reader_of(settings: Settings, folder: Path, *, drop: bool = True) -> str:
    """Return setting and path of the folder of images (`drop`: that of new ones, too) or state that holds `folder`.

    Empty when no such folder holds it: a command may write there.
    """
    place = _place("", folder)
    for name, path in _paths(settings, ""):
        inside = _inside(place, _place(name, path)) if name in ("state", *LABELLED, *[DROP] * drop) else None
        if inside is not None and (name != DROP or _searched(inside, settings)):
            return f"{name} {path}"
    return ""


def _paths(section: BaseModel, prefix: str) -> Iterator[tuple[str, Path]]:
    """Yield name and value of every path below `section`."""
    for name in type(section).model_fields:
        value = getattr(section, name)
        if isinstance(value, BaseModel):
            yield from _paths(value, f"{prefix}{name}.")
        elif isinstance(value, Path):
            yield f"{prefix}{name}", value


def _harmful(inner: str, outer: str, inside: Path, settings: Settings) -> bool:
    """Return whether `inner`, at `inside` of `outer`, does harm there."""
    folders = (DROP, *WRITTEN, *LABELLED)
    if outer == DROP:  # a quarantine takes every file that is no image
        return (inner in folders or settings.watch.quarantine is not None) and _searched(inside, settings)
    if inner in LABELLED and outer in LABELLED:
        return {inner, outer} <= IMAGES
    return inner in folders and outer in folders


def _searched(inside: Path, settings: Settings) -> bool:
    """Return whether the search for new images comes to `inside`, a path in the drop folder."""
    if inside == Path():
        return True
    ignored = re.compile("|".join(map(fnmatch.translate, settings.watch.ignore)) or r"(?!)", re.IGNORECASE)
    return settings.watch.advanced.recursive and not any(map(ignored.match, inside.parts))


def _place(name: str, path: Path) -> _Place:
    real = Path(os.path.realpath(path))
    return _Place(name, real, tuple((up, _identity(up)) for up in (real, *real.parents)))


def _inside(inner: _Place, outer: _Place) -> Path | None:
    """Return the path of `inner` relative to `outer` if it is that folder or lies in it, also through a mount."""
    same = outer.chain[0][1]
    for up, identity in inner.chain:
        if up == outer.path or (same is not None and identity == same):
            return inner.path.relative_to(up)
    return None


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino
