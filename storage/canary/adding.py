"""Add labelled images to the state directory: a folder of images and masks, an export of CVAT or of Label Studio.

All of an export is read and checked before anything is written. What is there is never overwritten.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from configs.folders import reader_of
from configs.settings import Settings
from storage import durable
from storage.canary.drawing import index_png, png_bytes
from storage.canary.exports import Labelled, items_of, opened
from storage.canary.images import IGNORED, CanaryImage, files_of
from storage.canary.records import CanaryClasses, Suggested
from storage.durable.record import read_record
from storage.errors import CanaryRefused, RefusedImage
from storage.layout import StateLayout
from storage.media.images import crc32_of
from storage.source import label_file
from storage.source.label_counts import LabelCounts
from storage.source.label_map import LabelMap
from storage.source.pairing import refusal


@dataclass
class Added:
    """What became of an export."""

    counts: LabelCounts
    """What the labels hold, by class index."""
    added: list[str] = field(default_factory=list)
    """Names of the images that were added."""
    known: list[str] = field(default_factory=list)
    """Names of those that were there already, image and label alike."""
    unchanged: list[str] = field(default_factory=list)
    """Names of those whose mask is as `mfmd canary suggest` filled it in; not added."""


def add_canary(
    settings: Settings, layout: StateLayout, export: Path, images: Path | None = None, *, unchanged: bool = False
) -> Added:
    """Add every labelled image of `export`, a folder, zip archive or JSON file; `images` holds images that it lacks.

    `unchanged`: also add masks that nobody changed since they were suggested. Raises CanaryRefused with every problem;
    then nothing was added.
    """
    done = Added(LabelCounts(index_map(settings)))
    problems, found = list[str](), list[Labelled]()
    for folder in filter(None, (export, images)):
        if reader := reader_of(settings, folder, drop=False):
            raise CanaryRefused(f"{folder} lies in {reader}: its images are used already; name another folder")
    with opened(export) as place:
        for name, read in items_of(settings, place, images):
            try:
                found.append(read())
            except (RefusedImage, OSError, ValueError) as error:
                problems.append(str(error) if name in str(error) else f"{name}: {error}")
        with durable.exclusive_lock(_made(layout.canary) / ".lock"):
            fresh = _fresh(layout, found, done, problems, unchanged=unchanged)
            problems += [f"{item.file}: no pixel of any class is labelled" for item in fresh if _is_empty(item)]
            if problems:
                text = str(refusal(problems))
                raise CanaryRefused(text.replace("labelled images not imported", "no canary image added"))
            _write(settings, layout, fresh, done)
    return done


def _fresh(
    layout: StateLayout, found: list[Labelled], done: Added, problems: list[str], *, unchanged: bool
) -> list[Labelled]:
    """Return those of `found` that are to be written; names of the others go to `done`, conflicts to `problems`.

    An image counts once, under one name: with another label it would be known which is right to nobody.
    """
    suggested = read_record(layout.canary / "suggested.json", Suggested) or Suggested()
    fresh, known = list[Labelled](), _added(layout)
    by_name, by_pixels = ({key(item): item for item in known} for key in (_name, _pixels))
    for item in found:
        twin = by_name.get(item.name) or by_pixels.get(_pixels(item))
        if not unchanged and suggested.masks.get(_pixels(item)) == crc32_of(item.classes):
            done.unchanged.append(item.name)
        elif twin is None:
            by_name[item.name] = by_pixels[_pixels(item)] = item
            fresh.append(item)
        elif _pixels(twin) == _pixels(item) and np.array_equal(twin.classes, item.classes):
            done.known.append(item.name)
        else:
            same = "name" if twin.name == item.name else "image"
            problems.append(f"{item.file}: another image or label of this {same} is there, {twin.file}; remove one")
    return fresh


def _added(layout: StateLayout) -> list[Labelled]:
    """Return what was added before."""
    images, labels = files_of(layout)
    pairs = [(image, labels / image.name) for image in sorted(images.glob("*.png"))]
    return [
        Labelled(image.stem, _array(image), _array(label) if label.exists() else np.empty(0, np.uint8), str(label))
        for image, label in pairs
    ]


def _write(settings: Settings, layout: StateLayout, fresh: list[Labelled], done: Added) -> None:
    images, labels = map(_made, files_of(layout))
    names, path = tuple(entry.name for entry in settings.classes), images.parent / "classes.json"
    known = read_record(path, CanaryClasses)
    if known is not None and known.names != names and any(images.glob("*.png")):
        raise CanaryRefused(f"{path}: the images there have labels of other classes: {', '.join(known.names)}")
    durable.write_record(path, CanaryClasses(names=names))
    for item in fresh:  # the label first: an image without a label would be refused
        durable.write_bytes(labels / f"{item.name}.png", index_png(item.classes, settings.classes))
        durable.write_bytes(images / f"{item.name}.png", png_bytes(Image.fromarray(item.pixels)))
        done.added.append(item.name)
        _count(done.counts, item.name, item.classes)


def index_map(settings: Settings) -> LabelMap:
    """Return the meaning of class indices and `IGNORED`."""
    return LabelMap.of(None, [(entry.name, entry.color) for entry in settings.classes])


def counts_of(settings: Settings, images: Sequence[CanaryImage]) -> LabelCounts:
    """Return what the labels of canary images hold, by class index."""
    found = LabelCounts(index_map(settings))
    for image in images:
        _count(found, image.name, image.label)
    return found


def _count(counts: LabelCounts, name: str, classes: NDArray[np.uint8]) -> None:
    values = {int(value): int(np.sum(classes == value)) for value in np.unique(classes)}
    counts.add(label_file.Label(classes, values, {}, None), name)


def _array(path: Path) -> NDArray[np.uint8]:
    with Image.open(path) as image:
        return np.asarray(image)


def _name(item: Labelled) -> str:
    return item.name


def _pixels(item: Labelled) -> int:
    return crc32_of(item.pixels)


def _is_empty(item: Labelled) -> bool:
    return bool((item.classes == IGNORED).all())


def _made(folder: Path) -> Path:
    durable.make_directory(folder)
    return folder
