"""Pair images with labels: by stem, in a label folder that mirrors the image folder or is flat."""

import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from configs.buffer import SourceSettings
from storage.errors import RefusedImage, SourceRefused
from storage.media.bounded import DecodeLimits, decode_bounded
from storage.media.images import FORMATS
from storage.source import label_file
from storage.source.label_map import LabelMap

IMAGE_MARKS = ("_leftImg8bit", "_rgb_anon", "_rgb_ref_anon", "_training", "_test")
"""Suffixes that Cityscapes, ACDC and DRIVE append to the stem of an image and not to its label's."""
SHOWN_PROBLEMS = 20


@dataclass(frozen=True, slots=True)
class LabelledPair:
    """An image and its label."""

    name: str
    """Path of the image relative to the image folder, posix."""
    image: Path
    label: Path


def source_pairs(source: SourceSettings) -> tuple[list[LabelledPair], list[LabelledPair]]:
    """Return the pairs of labelled images to train on (or to split), and those of the validation folders.

    Raises SourceRefused like `pair_labels`.
    """
    train, validation = pair_labels(source.images, source.labels, source.label_suffix), list[LabelledPair]()
    if source.validation_images is not None and source.validation_labels is not None:
        validation = pair_labels(source.validation_images, source.validation_labels, source.label_suffix)
    return train, validation


def pair_labels(images: Path, labels: Path, suffix: str = "") -> list[LabelledPair]:
    """Pair every image below `images` with the label `<stem><suffix>` below `labels`, sorted by name.

    A label ends in `.png` or in another ending of a format of labels; the case of the ending and the Unicode form of
    names (NFC, NFD) do not matter. Raises SourceRefused, which names every image without a label or with several, every
    label claimed by two images, and folders that are missing or hold no image.
    """
    for folder in (images, labels):
        if not folder.is_dir():
            raise refusal([f"{folder}: no such folder"])
    pairs, problems = [], []
    claimed: dict[Path, Path] = {}
    folders = _LabelFolders(labels)
    for image in _images(images, labels, suffix):
        found = folders.labels_of(image.relative_to(images), suffix)
        if not _is_text(str(image)):
            problems.append(f"{str(image)!r}: a name that is not UTF-8; rename the image")
        elif not found:
            hint = folders.hint(image, suffix) if not problems else ""
            problems.append(f"{image}: no label {image.stem}{suffix}.png below {labels}{hint}")
        elif len(found) > 1:
            problems.append(f"{image}: several labels: {', '.join(map(str, found))}; keep one")
        elif found[0] == image:
            problems.append(f"{image}: image and label in one; set source.label_suffix, or give labels another folder")
        elif claimed.setdefault(found[0], image) != image:
            problems.append(f"{found[0]}: label of both {claimed[found[0]]} and {image}")
        else:
            pairs.append(LabelledPair(image.relative_to(images).as_posix(), image, found[0]))
    if not pairs and not problems:
        problems.append(f"{images}: holds no image")
    if problems:
        raise refusal(problems)
    return pairs


def read_pair(
    pair: LabelledPair, label_map: LabelMap, limits: DecodeLimits
) -> tuple[NDArray[np.uint8], label_file.Label]:
    """Decode an image [h, w, 3] RGB and its label, both upright and of one moment.

    Raises RefusedImage like `decode_bounded` and `read_label`, for a file that changed meanwhile (unreadable), and for
    an image that its EXIF orientation turns when nothing says whether its label is turned too (bad_label).
    """
    before = _moment(pair)
    photo, label = decode_bounded(pair.image, limits), label_file.read_label(pair.label, label_map, limits)
    for path, was, now in zip((pair.image, pair.label), before, _moment(pair), strict=True):
        if was != now:
            raise RefusedImage("unreadable", f"{path}: it changed while image and label were read; try again")
    height, width = photo.pixels.shape[:2]
    told = label.orientation is not None or (photo.orientation > 4 and height != width)  # 5 to 8 swap the sides
    if photo.orientation != 1 and not told:
        what = f"{pair.label}: EXIF orientation {photo.orientation} turns its image {pair.image}, and nothing says"
        what += " whether the label lies like it; save both upright, or give the label an EXIF orientation (1: upright)"
        raise RefusedImage("bad_label", what)
    return photo.pixels, label


def _moment(pair: LabelledPair) -> list[tuple[int, ...]]:
    found = (path.stat() for path in (pair.image, pair.label))
    return [(item.st_dev, item.st_ino, item.st_size, item.st_mtime_ns, item.st_ctime_ns) for item in found]


def refusal(problems: list[str], meant: Iterable[str] = ()) -> SourceRefused:
    """Return the error that lists problems, the first `SHOWN_PROBLEMS` of them in its message, and then `meant`.

    `meant` says of the whole set what its labels hold and which setting would fit.
    """
    rest, about = len(problems) - SHOWN_PROBLEMS, list(meant)
    shown = problems[:SHOWN_PROBLEMS] + ([f"and {rest} more"] if rest > 0 else []) + about
    number = len(problems) or len(about)
    what = "1 problem" if number == 1 else f"{number} problems"
    return SourceRefused(f"labelled images not imported, {what}: " + "; ".join(shown), (*problems, *about))


def _images(images: Path, labels: Path, suffix: str) -> Iterator[Path]:
    endings = _endings(FORMATS) | {".heic", ".heif", ".hif"}
    for path in sorted(images.rglob("*")):
        is_label = labels in path.parents if labels != images else bool(suffix) and path.stem.endswith(suffix)
        hidden = any(part.startswith(".") for part in path.relative_to(images).parts)
        if path.suffix.lower() in endings and path.is_file() and not is_label and not hidden:
            yield path


@cache
def _endings(formats: Iterable[str]) -> frozenset[str]:
    """Return the endings of file names that Pillow knows for formats."""
    return frozenset(ending for ending, name in Image.registered_extensions().items() if name in formats)


class _LabelFolders:
    """Label files by folder and name, whatever the Unicode form of either and the case of the ending."""

    def __init__(self, labels: Path) -> None:
        self._labels = labels
        self._known: dict[Path, dict[str, list[Path]]] = {}
        self._listed: dict[Path, list[Path]] = {}
        self._mirrors: dict[Path, Path | None] = {}

    def labels_of(self, image: Path, suffix: str) -> list[Path]:
        """Return the labels of an image (its path relative to the images): one, none, or several that claim it."""
        stems = [image.stem, *(image.stem.removesuffix(mark) for mark in IMAGE_MARKS if image.stem.endswith(mark))]
        for folder in self._folders(image):
            for stem in stems:
                if found := self._in(folder).get(_nfc(stem + suffix)):
                    exact = [path for path in found if path.name == f"{stem}{suffix}.png"]
                    return exact or found
        return []

    def hint(self, image: Path, suffix: str) -> str:
        """Return a guess at the suffix: the names beside which the image's label was looked for."""
        mark = next((mark for mark in IMAGE_MARKS if image.stem.endswith(mark)), "")
        stem = _nfc(image.stem.removesuffix(mark))
        names = [name for folder in (*self._known,) for name in self._in(folder) if name.startswith(stem)]
        others = sorted({name.removeprefix(stem) for name in names} - {suffix})
        return f"; source.label_suffix may be {' or '.join(map(repr, others[:4]))}" if others else ""

    def _folders(self, image: Path) -> Iterator[Path]:
        """Yield the folder that mirrors the image's, if there is one, then the flat one."""
        if image.parent not in self._mirrors:
            folder: Path | None = self._labels
            for part in map(_nfc, image.parent.parts):
                folder = folder and next((f for f in self._list(folder) if _nfc(f.name) == part and f.is_dir()), None)
            self._mirrors[image.parent] = folder
        mirror = self._mirrors[image.parent]
        if mirror is not None and mirror != self._labels:
            yield mirror
        yield self._labels

    def _list(self, folder: Path) -> list[Path]:
        if folder not in self._listed:
            self._listed[folder] = sorted(folder.iterdir())
        return self._listed[folder]

    def _in(self, folder: Path) -> dict[str, list[Path]]:
        if folder not in self._known:
            names = self._known[folder] = {}
            for path in self._list(folder):
                if path.suffix.lower() in _endings(label_file.FORMATS) and path.is_file():
                    names.setdefault(_nfc(path.stem), []).append(path)
        return self._known[folder]


def _is_text(name: str) -> bool:
    return not any("\ud800" <= sign <= "\udfff" for sign in name)  # bytes that are not UTF-8


def _nfc(name: str) -> str:
    return unicodedata.normalize("NFC", name)
