"""Import labelled source images: check all, scale to frame size, publish the whole set or nothing."""

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from configs.buffer import SourceSettings
from configs.settings import Settings
from storage import durable
from storage.buffer.pixel_array import PixelArray
from storage.buffer.zarr_metadata import create_array, create_group
from storage.durable.digest import digest_of
from storage.errors import RefusedImage, StorageError
from storage.layout import StateLayout
from storage.media.images import FittedFrame, decode_image, fit_frame, fit_label, read_label
from storage.source.labelled import (
    CURRENT,
    IMAGES,
    INDEX,
    LABELS,
    SCHEMA_VERSION,
    CurrentSource,
    LabelledSet,
    SourceIndex,
    current_fingerprint,
)
from storage.source.pairing import LabelledPair, pair_labels, refusal

VALIDATION_SHARE = 0.1
"""Share of images held out, by name hash, when no validation folder is given."""


@dataclass(frozen=True, slots=True)
class _Fitted:
    """Index entry of one imported pair."""

    valid: tuple[int, int]
    class_pixels: list[int]


@dataclass(frozen=True, slots=True)
class _Job:
    """Input of an import."""

    settings: Settings
    source: SourceSettings
    train: list[LabelledPair]
    validation: list[LabelledPair]
    fingerprint: str

    @property
    def pairs(self) -> list[LabelledPair]:
        """All pairs in the order of the arrays."""
        return self.train + self.validation


def import_labelled(
    settings: Settings, layout: StateLayout, on_progress: Callable[[int, int], None] | None = None
) -> LabelledSet:
    """Import the configured source images into the state directory, unless it holds them already.

    `on_progress(done, total)` is called after every image. Raises SourceRefused with every file that has a problem and
    the bad value, after all were checked; the earlier set stays in use. Raises StorageError when no source is
    configured.
    """
    source = settings.source
    if source is None:
        raise StorageError("no labelled source images: set source.images and source.labels in the configuration")
    durable.make_directory(layout.source)
    with durable.exclusive_lock(layout.source / ".lock", wait=True):
        train, validation = _pairs(source)
        fingerprint = _fingerprint(settings, source, train, validation)
        _remove_leftovers(layout)
        if current_fingerprint(layout) != fingerprint:
            temporary = layout.source / f".{fingerprint}{durable.PARTIAL}"
            _build(temporary, _Job(settings, source, train, validation, fingerprint), on_progress)
            durable.publish_directory(temporary, layout.source / fingerprint)
            durable.write_record(layout.source / CURRENT, CurrentSource(fingerprint=fingerprint))
            _remove_leftovers(layout)
        return LabelledSet.open(layout)


def held_out(names: list[str]) -> list[int]:
    """Return indices of the held-out names: one in ten by hash, but at least one of two or more."""
    shares = [int(digest_of(name.encode())[:8], 16) / 2**32 for name in names]
    chosen = [index for index, share in enumerate(shares) if share < VALIDATION_SHARE]
    if len(names) < 2:
        return []
    if not chosen:
        return [shares.index(min(shares))]
    return chosen if len(chosen) < len(names) else chosen[:-1]


def _pairs(source: SourceSettings) -> tuple[list[LabelledPair], list[LabelledPair]]:
    """Return pairs to train on (or to split), and pairs of the validation folders."""
    train = pair_labels(source.images, source.labels, source.label_suffix)
    if source.validation_images is None or source.validation_labels is None:
        return train, []
    return train, pair_labels(source.validation_images, source.validation_labels, source.label_suffix)


def _fingerprint(
    settings: Settings, source: SourceSettings, train: list[LabelledPair], validation: list[LabelledPair]
) -> str:
    """Return a hash that changes with any file's path, size or mtime, the geometry or the classes."""
    facts = [
        [group, pair.name, pair.label.name, *_stamp(pair.image), *_stamp(pair.label)]
        for group, pairs in (("train", train), ("validation", validation))
        for pair in pairs
    ]
    buffer, classes = settings.buffer, [item.name for item in settings.classes]
    what = [SCHEMA_VERSION, facts, buffer.height, buffer.width, buffer.advanced.tile, classes, source.ignore_index]
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()[:32]


def _stamp(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def _build(folder: Path, job: _Job, on_progress: Callable[[int, int], None] | None) -> None:
    """Write arrays and index into `folder`; remove it on failure. Raises SourceRefused."""
    try:
        create_group(folder)
        fitted, problems = _import_pairs(_arrays(folder, job), job, on_progress)
        if problems:
            raise refusal(problems)
        durable.write_record(folder / INDEX, _index(job, fitted))
    except BaseException:
        shutil.rmtree(folder)
        raise


def _arrays(folder: Path, job: _Job) -> tuple[PixelArray, PixelArray]:
    buffer, count = job.settings.buffer, len(job.pairs)
    tile, ignored = buffer.advanced.tile, job.source.ignore_index
    shape = (count, buffer.height, buffer.width)
    images, labels = "Labelled source images, RGB; index.json has names", "Class indices of `images`"
    create_array(folder, IMAGES, (*shape, 3), tile=tile, fill=0, attributes={}, about=images)
    create_array(folder, LABELS, shape, tile=tile, fill=ignored, attributes={}, about=labels)
    return PixelArray(folder, IMAGES, writable=True), PixelArray(folder, LABELS, writable=True)


def _import_pairs(
    arrays: tuple[PixelArray, PixelArray], job: _Job, on_progress: Callable[[int, int], None] | None
) -> tuple[list[_Fitted], list[str]]:
    """Write every good pair; return index entries for them, and the problems of the others."""
    images, labels = arrays
    fitted, problems = [], []
    for number, pair in enumerate(job.pairs):
        try:
            frame, label = _fit(pair, job)
        except (RefusedImage, FileNotFoundError, PermissionError) as error:
            problems.append(str(error))
        else:
            images.write(number, frame.pixels)
            labels.write(number, label)
            counts = np.bincount(label[label != job.source.ignore_index], minlength=len(job.settings.classes))
            fitted.append(_Fitted((frame.valid_height, frame.valid_width), counts.tolist()))
        if on_progress is not None:
            on_progress(number + 1, len(job.pairs))
    return fitted, problems


def _fit(pair: LabelledPair, job: _Job) -> tuple[FittedFrame, NDArray[np.uint8]]:
    """Check and scale one pair; label [H, W]. Raises RefusedImage."""
    watch, buffer, ignored = job.settings.watch, job.settings.buffer, job.source.ignore_index
    pixels = decode_image(pair.image, max_bytes=watch.max_file_bytes, max_pixels=watch.max_pixels)
    label = read_label(pair.label, num_classes=len(job.settings.classes), ignore_index=ignored)
    if label.shape != pixels.shape[:2]:
        raise RefusedImage(
            "bad_label",
            f"{pair.label}: {label.shape[1]}x{label.shape[0]} pixels, its image {pair.image} "
            f"has {pixels.shape[1]}x{pixels.shape[0]}",
        )
    return fit_frame(pixels, buffer.height, buffer.width), fit_label(label, buffer.height, buffer.width, ignored)


def _index(job: _Job, fitted: list[_Fitted]) -> SourceIndex:
    names = [pair.name for pair in job.pairs]
    return SourceIndex(
        fingerprint=job.fingerprint,
        height=job.settings.buffer.height,
        width=job.settings.buffer.width,
        ignore_index=job.source.ignore_index,
        classes=[item.name for item in job.settings.classes],
        names=names,
        valid=[item.valid for item in fitted],
        validation=list(range(len(job.train), len(names))) if job.validation else held_out(names),
        class_pixels=[item.class_pixels for item in fitted],
    )


def _remove_leftovers(layout: StateLayout) -> None:
    """Remove every set but the one in use, and leftovers of a killed import."""
    durable.remove_partials(layout.source)
    current = current_fingerprint(layout)
    for folder in layout.source.iterdir():
        if folder.is_dir() and folder.name != current:
            durable.retire_directory(folder)
