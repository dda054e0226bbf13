"""Pair images with labels: by stem, in a label folder that mirrors the image folder or is flat."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from storage.errors import SourceRefused

IMAGE_SUFFIXES = frozenset(
    {".avif", ".bmp", ".gif", ".jp2", ".jpeg", ".jpg", ".png", ".pgm", ".ppm", ".tif", ".tiff", ".webp"}
)
IMAGE_MARKS = ("_leftImg8bit", "_rgb_anon", "_rgb_ref_anon")
"""Suffixes that Cityscapes and ACDC append to the stem of an image and not to its label's."""
SHOWN_PROBLEMS = 20


@dataclass(frozen=True, slots=True)
class LabelledPair:
    """An image and its label."""

    name: str
    """Path of the image relative to the image folder, posix."""
    image: Path
    label: Path


def pair_labels(images: Path, labels: Path, suffix: str = "") -> list[LabelledPair]:
    """Pair every image below `images` with `<stem><suffix>.png` below `labels`, sorted by name.

    Raises SourceRefused, which names every image without a label, every label claimed by two images of different
    folders, and folders that are missing or hold no image.
    """
    for folder in (images, labels):
        if not folder.is_dir():
            raise refusal([f"{folder}: no such folder"])
    pairs, problems = [], []
    claimed: dict[Path, Path] = {}
    for image in _images(images, labels, suffix):
        label = _label_of(image, images, labels, suffix)
        if label is None:
            problems.append(f"{image}: no label {image.stem}{suffix}.png below {labels}")
        elif claimed.setdefault(label, image) != image:
            problems.append(f"{label}: label of both {claimed[label]} and {image}")
        else:
            pairs.append(LabelledPair(image.relative_to(images).as_posix(), image, label))
    if not pairs and not problems:
        problems.append(f"{images}: holds no image")
    if problems:
        raise refusal(problems)
    return pairs


def refusal(problems: list[str]) -> SourceRefused:
    """Return the error that lists problems, the first `SHOWN_PROBLEMS` of them in its message."""
    rest = len(problems) - SHOWN_PROBLEMS
    shown = problems[:SHOWN_PROBLEMS] + ([f"and {rest} more"] if rest > 0 else [])
    what = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    return SourceRefused(f"labelled images not imported, {what}: " + "; ".join(shown), tuple(problems))


def _images(images: Path, labels: Path, suffix: str) -> Iterator[Path]:
    for path in sorted(images.rglob("*")):
        is_label = labels in path.parents if labels != images else bool(suffix) and path.stem.endswith(suffix)
        hidden = any(part.startswith(".") for part in path.relative_to(images).parts)
        if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file() and not is_label and not hidden:
            yield path


def _label_of(image: Path, images: Path, labels: Path, suffix: str) -> Path | None:
    marks = (mark for mark in IMAGE_MARKS if image.stem.endswith(mark))
    stems = [image.stem, *(image.stem.removesuffix(mark) for mark in marks)]
    folders = [labels / image.parent.relative_to(images), labels]
    options = (folder / f"{stem}{suffix}.png" for folder in folders for stem in stems)
    return next((path for path in options if path.is_file()), None)
