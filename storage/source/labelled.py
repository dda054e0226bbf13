"""Read the labelled source images: images and label maps of one size in two zarr arrays.

source/current.json           names the set in use
source/<fingerprint>/         one imported set: images, labels (zarr), index.json; complete or absent
"""

from pathlib import Path
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from configs.buffer import LabelFormat
from configs.settings import Settings
from storage.buffer.pixel_array import PixelArray
from storage.durable.record import Record, read_record
from storage.errors import StorageError
from storage.layout import StateLayout
from storage.source.label_counts import LabelCounts
from storage.source.label_map import LabelMap

IMAGES, LABELS, INDEX, CURRENT = "images", "labels", "index.json", "current.json"
SCHEMA_VERSION = 1
FINGERPRINT_DIGITS = 32
"""Hex digits in the name of a set's folder."""
AGAIN = "remove {}, then import again with `mfmd pretrain`"
"""Remedy for a damaged set; of a folder of the state directory, never of the operator's images."""


class CurrentSource(Record):
    """`current.json`: the set in use."""

    fingerprint: str
    """Fingerprint of the files and settings of the import; also the name of its folder."""


class SourceIndex(Record):
    """`index.json` of an imported set; lists are in the order of the arrays."""

    schema_version: Literal[1] = 1
    fingerprint: str
    """Hash of paths, sizes, mtimes, geometry and classes."""
    height: int
    """Height of the arrays (pixels)."""
    width: int
    """Width of the arrays (pixels)."""
    ignore_index: int
    """Label value outside classes, also of the padding."""
    classes: list[str]
    """Class names by index."""
    names: list[str]
    """Image names, relative to their folder."""
    valid: list[tuple[int, int]]
    """Rows and columns that hold image (pixels)."""
    validation: list[int] = Field(default_factory=list)
    """Indices of held-out images."""
    class_pixels: list[list[int]]
    """Labelled pixels per image and class."""
    label_format: LabelFormat = "index"
    """How label files were read (`source.label_format`)."""
    label_map: dict[str, int | None] = Field(default_factory=dict)
    """Label value -> class index, None when ignored (`source.label_map`)."""
    label_values: dict[int, int] = Field(default_factory=dict)
    """Label value -> its pixels in all label files; empty in a set that an older mfmd imported."""


class LabelledSet:
    """Labelled source images at frame size; made by `storage.source.labelled_import`."""

    def __init__(self, folder: Path) -> None:
        again = AGAIN.format(folder.parent)
        index = read_record(folder / INDEX, SourceIndex, f"; {again}")
        if index is None:
            raise StorageError(f"{folder / INDEX}: missing; {again}")
        self.images = PixelArray(folder, IMAGES)
        """Images, [H, W, 3] RGB."""
        self.labels = PixelArray(folder, LABELS)
        """Class indices, [H, W]."""
        self.names: tuple[str, ...] = tuple(index.names)
        """Image names, relative to their folder."""
        self.validation: tuple[int, ...] = tuple(sorted(set(index.validation)))
        """Indices that are never trained on."""
        self.train: tuple[int, ...] = tuple(sorted(set(range(len(self.names))) - set(index.validation)))
        """Indices to train on."""
        self.class_pixels: NDArray[np.int64] = np.array(index.class_pixels, np.int64)
        """Labelled pixels, [N, K]."""
        self.height, self.width = index.height, index.width
        """Size of images and labels (pixels)."""
        self.ignore_index = index.ignore_index
        """Label value that losses and scores ignore."""
        self._index = index
        self.valid = index.valid
        """Rows and columns that hold image (pixels); the rest is zero, its labels `ignore_index`."""

    def read_as(self, settings: Settings) -> bool:
        """Return whether labels had the meaning that they have by `settings`: format, map, classes, ignored value."""
        source, names = settings.source, [entry.name for entry in settings.classes]
        if source is None:
            return False
        wanted = (source.label_format, source.mapped(names), source.ignore_index, names)
        index = self._index
        return wanted == (index.label_format, index.label_map, index.ignore_index, index.classes)

    def counts(self, label_map: LabelMap) -> LabelCounts:
        """Return what the label files hold; `label_map` is that of the import."""
        values = self._index.label_values or dict(enumerate(self.class_pixels.sum(axis=0).tolist()))
        found = LabelCounts(label_map, {value: pixels for value, pixels in values.items() if pixels})
        found.unlabelled = [self.names[index] for index in np.flatnonzero(self.class_pixels.sum(axis=1) == 0)]
        trained, every = self.class_pixels[list(self.train)].sum(axis=0), self.class_pixels.sum(axis=0)
        found.untrained = [label_map.names[index] for index in np.flatnonzero((trained == 0) & (every > 0))]
        return found

    @classmethod
    def open(cls, layout: StateLayout) -> Self:
        """Open the imported set. Raises StorageError when there is none, CorruptBuffer when it is damaged."""
        return cls.in_folder(layout.source)

    @classmethod
    def in_folder(cls, folder: Path) -> Self:
        """Open the set that was imported into `folder`; raises like `open`."""
        fingerprint = current_fingerprint(folder)
        if fingerprint is None:
            raise StorageError(f"{folder}: no labelled source imported yet; `mfmd pretrain` imports it")
        return cls(folder / fingerprint)

    @staticmethod
    def exists(layout: StateLayout) -> bool:
        """Return whether a set was imported."""
        return current_fingerprint(layout.source) is not None

    def __len__(self) -> int:
        return len(self.names)


def old_sets(folder: Path, current: str | None) -> list[Path]:
    """Return the sets in `folder` that are not in use, by the form of their names: others are not ours to remove."""
    found = folder.glob("[0-9a-f]" * FINGERPRINT_DIGITS)
    return sorted(path for path in found if path.is_dir() and not path.is_symlink() and path.name != current)


def current_fingerprint(folder: Path) -> str | None:
    """Return the fingerprint of the set in use in `folder`, or None. Raises StorageError when that is damaged."""
    current = read_record(folder / CURRENT, CurrentSource, f"; {AGAIN.format(folder)}")
    return current.fingerprint if current else None
