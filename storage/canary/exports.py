"""Read what a person labelled: a folder of images and masks, an export of CVAT, a JSON export of Label Studio."""

import json
import re
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from configs.settings import Settings
from storage.canary.archives import unpack
from storage.canary.drawing import color_map, cvat_map, shared_map
from storage.canary.label_studio import image_name, is_export, task_classes
from storage.errors import CanaryRefused, RefusedImage, SourceRefused
from storage.media.bounded import DecodeLimits, decode_bounded
from storage.source import label_file
from storage.source.label_map import LabelMap
from storage.source.pairing import LabelledPair, read_pair

IMAGE_FOLDERS = ("images", "JPEGImages")
LABEL_FOLDERS = ("labels", "masks", "SegmentationClass")
"""Names of folders in an export."""
OWN_TASKS = "label-studio.json"
"""The file of tasks that `mfmd canary suggest` writes: it holds no annotation."""
BY_TASK = re.compile(r"task-\d+-annotation-\d+-.*\.(png|npy)", re.IGNORECASE)
"""Names of the masks that Label Studio exports as PNG or NumPy files: its own numbers, and never the image's name."""


class Labelled(NamedTuple):
    """An image with the label that somebody drew."""

    name: str
    """Its path without ending, `__` between folders."""
    pixels: NDArray[np.uint8]
    """[h, w, 3] RGB, upright."""
    classes: NDArray[np.uint8]
    """Class indices, or `IGNORED` where nothing is labelled, [h, w]."""
    file: str
    """What the label was read from, for messages."""


Read = tuple[str, Callable[[], Labelled]]
"""Name of an image, and what reads it with its label. It raises RefusedImage, ValueError or OSError."""


@contextmanager
def opened(export: Path) -> Iterator[Path]:
    """Give the folder of an export; a zip archive is unpacked meanwhile. Raises CanaryRefused.

    A CanaryRefused from inside names the archive, not the folder into which it was unpacked.
    """
    if export.suffix.lower() != ".zip" or export.is_dir():
        yield export
        return
    with TemporaryDirectory(prefix="mfmd-canary-") as folder:
        unpack(export, Path(folder))
        try:
            yield Path(folder)
        except CanaryRefused as error:
            raise CanaryRefused(str(error).replace(folder, str(export))) from error


def items_of(settings: Settings, export: Path, images: Path | None) -> Iterator[Read]:
    """Yield the images of an export, a folder or a JSON file, by its format; `images` holds those that it lacks.

    Raises CanaryRefused for a format that is none of the three, and for labels of another class list.
    """
    names = [entry.name for entry in settings.classes]
    _check_kind(export)
    tasks = [path for path in sorted(export.glob("*.json")) if path.name != OWN_TASKS]
    if export.is_file():
        tasks, export = [export], export.parent
    if not tasks:
        _check_named(export)
    folder = next((export / name for name in IMAGE_FOLDERS if any((export / name).glob("*"))), images)
    if folder is None or not folder.is_dir():
        raise CanaryRefused(
            f"{export}: no image in a folder {' or '.join(IMAGE_FOLDERS)}; name the folder of the images with --images"
        )
    known = _images(folder)
    if tasks:
        yield from _of_tasks(settings, tasks, known, names)
        return
    masks = next((export / name for name in LABEL_FOLDERS if (export / name).is_dir()), None)
    if masks is None:
        raise CanaryRefused(
            f"{export}: no folder {' or '.join(LABEL_FOLDERS)}, and no JSON export of Label Studio; put the masks into "
            f"a folder {LABEL_FOLDERS[0]}, named like their images"
        )
    pairs = _pairs(masks, known)
    cvat = export / "labelmap.txt"
    label_map = cvat_map(cvat, names) if cvat.is_file() else _map_of(settings, pairs)
    for stem, label, image in pairs:
        yield stem, partial(_read, stem, label, image, label_map, DecodeLimits.of(settings.watch))


def _check_kind(export: Path) -> None:
    """Raise CanaryRefused for what is no folder and no JSON file."""
    if not export.exists():
        raise CanaryRefused(f"{export}: no such folder or file")
    if export.is_file() and export.suffix.lower() != ".json":
        raise CanaryRefused(f"{export}: neither a folder nor a .zip or .json file; name the folder that holds it")


def _check_named(export: Path) -> None:
    """Raise CanaryRefused for masks of Label Studio that do not say of which image they are."""
    if by_task := next((path for path in sorted(export.rglob("*")) if BY_TASK.fullmatch(path.name)), None):
        raise CanaryRefused(
            f"{by_task}: Label Studio names PNG and NumPy masks by task, not by image, so nobody can tell of which "
            "image it is the label; export the project as JSON, and add that file with --images FOLDER"
        )


def _images(folder: Path) -> dict[str, list[Path]]:
    """Return the files below `folder` by path without ending, in one Unicode form."""
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.name.startswith("."):
            found.setdefault(_stem(path.relative_to(folder)), []).append(path)
    return found


def _stem(path: Path) -> str:
    return unicodedata.normalize("NFC", path.with_suffix("").as_posix())


def _one(label: Path, name: str, known: dict[str, list[Path]]) -> Path:
    found = known.get(name, [])
    if len(found) > 1:
        raise RefusedImage("bad_label", f"{label}: several images of this name: {', '.join(map(str, found))}; keep one")
    if not found:
        raise RefusedImage("bad_label", f"{label}: no image of this name; give it that of its image, or remove it")
    return found[0]


def _pairs(masks: Path, known: dict[str, list[Path]]) -> list[tuple[str, Path, Callable[[], Path]]]:
    files = [path for path in sorted(masks.rglob("*")) if path.is_file() and not path.name.startswith(".")]
    if not files:
        raise CanaryRefused(f"{masks}: holds no label; put the masks there, named like their images")
    stems = [_stem(path.relative_to(masks)) for path in files]
    return [(stem, path, partial(_one, path, stem, known)) for stem, path in zip(stems, files, strict=True)]


def _map_of(settings: Settings, pairs: list[tuple[str, Path, Callable[[], Path]]]) -> LabelMap:
    """Return how plain masks are read: by the colours of the classes when every colour is one, else as configured."""
    colors, limits = color_map(settings.classes), DecodeLimits.of(settings.watch)
    if all(_has_only(colors, path, limits) for _, path, _ in pairs):
        return colors
    try:
        return shared_map(settings.canary.as_source(settings.source) or settings.source, settings.classes)
    except SourceRefused as error:
        raise CanaryRefused(str(error)) from error


def _has_only(colors: LabelMap, path: Path, limits: DecodeLimits) -> bool:
    """Return whether a mask has colours, all of them known; one that is no label is named when it is read."""
    try:
        with Image.open(path, formats=label_file.FORMATS) as image:
            colored = image.mode in ("P", "RGB", "RGBA")
        if colored:
            label_file.read_label(path, colors, limits)
    except (RefusedImage, OSError):
        return False
    return colored


def _read(stem: str, label: Path, image: Callable[[], Path], label_map: LabelMap, limits: DecodeLimits) -> Labelled:
    pixels, read = read_pair(LabelledPair(stem, image(), label), label_map, limits)
    return _labelled(stem, pixels, read.classes, str(label))


def _labelled(stem: str, pixels: NDArray[np.uint8], classes: NDArray[np.uint8], file: str) -> Labelled:
    if classes.shape != pixels.shape[:2]:
        height, width = pixels.shape[:2]
        raise RefusedImage(
            "bad_label",
            f"{file}: {classes.shape[1]}x{classes.shape[0]} pixels, its image has {width}x{height}; draw it again on "
            "the image, because a label that is scaled is wrong at edges",
        )
    return Labelled(stem.replace("/", "__"), pixels, classes, file)


def _of_tasks(settings: Settings, files: list[Path], known: dict[str, list[Path]], names: list[str]) -> Iterator[Read]:
    """Yield the annotated tasks of JSON exports of Label Studio; images are found by the name of their file."""
    by_name: dict[str, list[Path]] = {}
    for path in (path for paths in known.values() for path in paths):
        by_name.setdefault(unicodedata.normalize("NFC", path.name), []).append(path)
    count = 0
    for file in files:
        try:
            tasks = json.loads(file.read_text("utf-8"))
        except ValueError as error:
            raise CanaryRefused(f"{file}: no JSON: {error}") from error
        if not is_export(tasks):
            raise CanaryRefused(
                f"{file}: no JSON export of Label Studio (a list of tasks with `data`): choose JSON there"
            )
        for task in tasks:
            name = unicodedata.normalize("NFC", image_name(task))
            count += 1
            yield (name or f"{file}: task {count}"), partial(_task, settings, task, name, by_name, names)
    if not count:
        raise CanaryRefused(f"{files[0]}: holds no task")


def _task(
    settings: Settings, task: dict[str, Any], name: str, by_name: dict[str, list[Path]], names: list[str]
) -> Labelled:
    image = _one(Path(name or "a task without an image"), name, by_name)
    pixels = decode_bounded(image, DecodeLimits.of(settings.watch)).pixels
    classes = task_classes(task, pixels.shape[0], pixels.shape[1], names)
    if classes is None:
        raise RefusedImage("bad_label", f"{name}: not annotated; leave its task out of the export")
    return _labelled(_stem(Path(name)), pixels, classes, name)
