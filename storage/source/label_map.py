"""What label values mean: from a value or colour in a label file to a class, as `source` says."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from configs.buffer import LabelFormat, SourceSettings
from storage.errors import SourceRefused

CITYSCAPES_NAMES = (
    "unlabeled", "ego vehicle", "rectification border", "out of roi", "static", "dynamic", "ground", "road", "sidewalk",
    "parking", "rail track", "building", "wall", "fence", "guard rail", "bridge", "tunnel", "pole", "polegroup",
    "traffic light", "traffic sign", "vegetation", "terrain", "sky", "person", "rider", "car", "truck", "bus",
    "caravan", "trailer", "train", "motorcycle", "bicycle", "license plate",
)  # fmt: skip
"""What Cityscapes' ids mean, by id; only GTA draws the license plate."""
SYNTHIA_NAMES = (
    "void", "sky", "building", "road", "sidewalk", "fence", "vegetation", "pole", "car", "traffic sign", "person",
    "bicycle", "motorcycle", "parking slot", "road work", "traffic light", "terrain", "rider", "truck", "bus", "train",
    "wall", "lane marking",
)  # fmt: skip
"""What the ids of SYNTHIA-RAND-CITYSCAPES mean, by id, in Cityscapes' words (DAFormer's conversion of the data set)."""
NAMES_BY_ID = {"cityscapes_ids": CITYSCAPES_NAMES, "synthia_ids": SYNTHIA_NAMES}
"""Label formats that find classes by the name of an id."""
MOST_VALUES = 1000
"""Label values from which on others of no meaning are not counted: a photograph taken for a label holds many more."""
AT_ONCE = 2**20
"""Pixels that are looked up at once: memory stays small beside the label."""


@dataclass(frozen=True, slots=True)
class LabelMap:
    """What each label value means; a colour is one number, red * 65536 + green * 256 + blue."""

    format: LabelFormat
    names: tuple[str, ...]
    """Class names by index."""
    ignore_index: int
    """Stands in a class map for a pixel of no class."""
    classes: dict[int, int]
    """Label value -> class index, or `ignore_index`; a value that is missing here means nothing."""
    plain: bool
    """Whether `source.label_map` is empty."""

    @classmethod
    def of(cls, source: SourceSettings | None, classes: Iterable[tuple[str, Sequence[int]]]) -> Self:
        """Return the map of `source` to classes, given as (name, RGB colour) in order; None reads indices.

        Raises SourceRefused when two classes have one colour and labels are read by colours.
        """
        names, colors = zip(*classes, strict=True)
        source = source or SourceSettings(images=Path(), labels=Path())
        ignored = source.ignore_index
        meanings = {code_of(value): index for value, index in source.mapped(names).items()}
        named = set(meanings.values())
        known = {value: index for value, index in _of_format(source, names, colors).items() if index not in named}
        known |= {value: ignored if index is None else index for value, index in meanings.items()}
        return cls(source.label_format, names, ignored, known, plain=not meanings)

    def text(self, value: int) -> str:
        """Return a label value as it is written in `source.label_map`."""
        return ",".join(map(str, value.to_bytes(3))) if self.format == "rgb" else str(value)

    def name(self, value: int) -> str:
        """Return the name of the class that a label value means; `ignored`, or `?` for a value that means nothing."""
        index = self.classes.get(value)
        return "?" if index is None else "ignored" if index == self.ignore_index else self.names[index]

    def nearest(self, value: int) -> str:
        """Return the label value that has a meaning and is nearest to `value`, with its meaning."""

        def distance(known: int) -> int:
            if self.format != "rgb":
                return abs(known - value)
            return sum((a - b) ** 2 for a, b in zip(known.to_bytes(3), value.to_bytes(3), strict=True))

        closest = min(self.classes, key=distance)
        return f"{self.text(closest)} ({self.name(closest)})"

    def apply(self, values: NDArray[np.integer[Any]]) -> tuple[NDArray[np.uint8], NDArray[np.bool_], dict[int, int]]:
        """Return classes of label values [h, w]; which mean nothing (class `ignore_index`); and pixels by value.

        Of the values that mean nothing only the first are counted, about `MOST_VALUES`.
        """
        known = np.array(sorted(self.classes), np.int64)
        indices = np.array([self.classes[value] for value in known.tolist()], np.uint8)
        classes, unknown = np.empty(values.size, np.uint8), np.empty(values.size, np.bool_)
        pixels = Counter[int]()
        for start in range(0, values.size, AT_ONCE):
            part = values.reshape(-1)[start : start + AT_ONCE].astype(np.int64)
            place = np.searchsorted(known, part).clip(max=len(known) - 1)
            odd = unknown[start : start + AT_ONCE] = known[place] != part
            classes[start : start + AT_ONCE] = np.where(odd, np.uint8(self.ignore_index), indices[place])
            counts = np.bincount(place[~odd], minlength=len(known))
            pixels.update({int(known[index]): int(counts[index]) for index in np.flatnonzero(counts)})
            if len(pixels) < len(known) + MOST_VALUES:
                others = zip(*(found[:MOST_VALUES].tolist() for found in np.unique_counts(part[odd])), strict=True)
                pixels.update(dict(others))
        return classes.reshape(values.shape), unknown.reshape(values.shape), dict(pixels)


def code_of(value: str) -> int:
    """Return the number that stands for a value of `source.label_map`: itself, or that of a colour."""
    return int.from_bytes(bytes(int(part) for part in value.split(","))) if "," in value else int(value)


def _of_format(source: SourceSettings, names: Sequence[str], colors: Sequence[Sequence[int]]) -> dict[int, int]:
    """Return what label values mean by the format alone."""
    ignored = source.ignore_index
    if source.label_format == "rgb":
        codes = [int.from_bytes(bytes(color)) for color in colors]
        for place, code in enumerate(codes):
            if code in codes[:place]:
                twice = f"classes {names[codes.index(code)]!r} and {names[place]!r} have one colour"
                raise SourceRefused(f"source.label_format: rgb: {twice}; give each its own in `classes`", (twice,))
        return {code: index for index, code in enumerate(codes)}
    if by_id := NAMES_BY_ID.get(source.label_format):
        ids = {value: names.index(name) if name in names else ignored for value, name in enumerate(by_id)}
        return {ignored: ignored} | ids
    if source.label_format == "ade20k":
        return {ignored: ignored, 0: ignored} | {index + 1: index for index in range(len(names))}
    return {ignored: ignored} | {index: index for index in range(len(names))}
