"""Import labelled source images: check all, scale to frame size, publish the whole set or nothing."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from configs.buffer import SourceSettings
from configs.settings import Settings
from storage import durable
from storage.buffer.pixel_array import PixelArray
from storage.buffer.zarr_metadata import create_array
from storage.durable.digest import digest_of
from storage.errors import RefusedImage, StorageError
from storage.layout import StateLayout
from storage.media.bounded import DecodeLimits
from storage.media.images import ASPECT, Fit, FittedFrame, fit_frame, fit_label
from storage.source.label_counts import LabelCounts
from storage.source.label_file import UnknownValue
from storage.source.label_map import LabelMap
from storage.source.labelled import (
    CURRENT,
    FINGERPRINT_DIGITS,
    IMAGES,
    INDEX,
    LABELS,
    SCHEMA_VERSION,
    CurrentSource,
    LabelledSet,
    SourceIndex,
    current_fingerprint,
    old_sets,
)
from storage.source.pairing import LabelledPair, read_pair, refusal, source_pairs

OnProgress = Callable[[int, int], None]
VALIDATION_SHARE = 0.1
"""Share of images held out, by name hash, when no validation folder is given."""


def import_labelled(
    settings: Settings, layout: StateLayout, on_progress: OnProgress = lambda done, total: None
) -> LabelledSet:
    """Import the configured source images into the state directory, unless it holds them already.

    `on_progress(done, total)` is called after every image. Raises SourceRefused with every file that has a problem and
    the bad value, after all were checked; the earlier set stays in use. Raises StorageError when no source is
    configured.
    """
    if settings.source is None:
        raise StorageError("no labelled source images: set source.images and source.labels in the configuration")
    return import_set(settings, settings.source, layout.source, on_progress)


def import_set(
    settings: Settings, source: SourceSettings, folder: Path, on_progress: OnProgress = lambda done, total: None
) -> LabelledSet:
    """Import the labelled images of `source` into `folder`, unless it holds them already; like `import_labelled`."""
    durable.make_directory(folder)
    with durable.exclusive_lock(folder / ".lock"):
        job = _Import(settings, source)
        fingerprint = job.fingerprint()
        _remove_leftovers(folder)
        if current_fingerprint(folder) != fingerprint:
            temporary = folder / f".{fingerprint}{durable.PARTIAL}"
            job.build(temporary, fingerprint, on_progress)
            durable.publish_directory(temporary, folder / fingerprint)
            durable.write_record(folder / CURRENT, CurrentSource(fingerprint=fingerprint))
            _remove_leftovers(folder)
        return LabelledSet.in_folder(folder)


def held_out(names: list[str]) -> list[int]:
    """Return indices of the held-out names: one in ten by hash, but at least one of two or more."""
    shares = [int(digest_of(name.encode())[:8], 16) / 2**32 for name in names]
    chosen = [index for index, share in enumerate(shares) if share < VALIDATION_SHARE]
    if len(names) < 2:
        return []
    if not chosen:
        return [shares.index(min(shares))]
    return chosen if len(chosen) < len(names) else chosen[:-1]


class _Import:
    """The pairs of one import: those to train on (or to split), then those of the validation folders."""

    def __init__(self, settings: Settings, source: SourceSettings) -> None:
        self._buffer, self._source = settings.buffer, source
        self._watch, self._classes = settings.watch, [item.name for item in settings.classes]
        self._map = label_map_of(settings, source)
        self._mapped = source.mapped(self._classes)
        self._train, self._validation = source_pairs(source)
        self._pairs = self._train + self._validation

    def fingerprint(self) -> str:
        """Return a hash that changes with a file's path, size or mtime, the geometry, classes or label meanings."""
        facts = [
            [group, pair.name, pair.label.name, *_stamp(pair.image), *_stamp(pair.label)]
            for group, pairs in (("train", self._train), ("validation", self._validation))
            for pair in pairs
        ]
        size, tile = (self._buffer.height, self._buffer.width), self._buffer.advanced.tile
        what = [SCHEMA_VERSION, facts, *size, tile, self._classes, self._source.ignore_index]
        if self._source.label_format != "index" or self._mapped:  # without them as ever: sets on disk keep their names
            what += [self._source.label_format, self._mapped]
        if (fit := Fit.of(self._buffer)) != ASPECT:
            what += fit
        return hashlib.sha256(json.dumps(what).encode()).hexdigest()[:FINGERPRINT_DIGITS]

    def build(self, folder: Path, fingerprint: str, on_progress: OnProgress) -> None:
        """Write arrays and index into `folder`; remove it on failure. Raises SourceRefused."""
        try:
            durable.write_record(folder / INDEX, self._write(*self._arrays(folder), fingerprint, on_progress))
        except BaseException:
            shutil.rmtree(folder)
            raise

    def _arrays(self, folder: Path) -> tuple[PixelArray, PixelArray]:
        tile, ignored = self._buffer.advanced.tile, self._source.ignore_index
        shape = (len(self._pairs), self._buffer.height, self._buffer.width)
        images, labels = "Labelled source images, RGB; index.json has names", "Class indices of `images`"
        create_array(folder, IMAGES, (*shape, 3), tile=tile, fill=0, attributes={}, about=images)
        create_array(folder, LABELS, shape, tile=tile, fill=ignored, attributes={}, about=labels)
        return PixelArray(folder, IMAGES), PixelArray(folder, LABELS)

    def _write(self, images: PixelArray, labels: PixelArray, fingerprint: str, on_progress: OnProgress) -> SourceIndex:
        """Write every good pair; return the index. Raises SourceRefused, with the problems of all others."""
        problems, valid, class_pixels = list[str](), list[tuple[int, int]](), list[list[int]]()
        found = LabelCounts(self._map)
        for number, pair in enumerate(self._pairs):
            try:
                frame, label = self._fit(pair, found)
            except (RefusedImage, FileNotFoundError, PermissionError) as error:
                problems.append(str(error))
                if isinstance(error, UnknownValue):
                    found.add(error, pair.name)
            else:
                images.write(number, frame.pixels)
                labels.write(number, label)
                counts = np.bincount(label[label != self._source.ignore_index], minlength=len(self._classes))
                valid.append((frame.valid_height, frame.valid_width))
                class_pixels.append(counts.tolist())
            on_progress(number + 1, len(self._pairs))
        meant = found.problems() if found.values else []
        if problems or meant:
            raise refusal(problems, meant)
        names = [pair.name for pair in self._pairs]
        return SourceIndex(
            fingerprint=fingerprint,
            height=self._buffer.height,
            width=self._buffer.width,
            ignore_index=self._source.ignore_index,
            classes=self._classes,
            names=names,
            valid=valid,
            validation=list(range(len(self._train), len(names))) if self._validation else held_out(names),
            class_pixels=class_pixels,
            label_format=self._source.label_format,
            label_map=self._mapped,
            label_values=dict(found.values),
        )

    def _fit(self, pair: LabelledPair, found: LabelCounts) -> tuple[FittedFrame, NDArray[np.uint8]]:
        """Return image and label at frame size; count the label. Raises RefusedImage."""
        buffer, ignored = self._buffer, self._source.ignore_index
        pixels, label = read_pair(pair, self._map, DecodeLimits.of(self._watch))
        found.add(label, pair.name)
        if label.classes.shape != pixels.shape[:2]:
            raise RefusedImage(
                "bad_label",
                f"{pair.label}: {label.classes.shape[1]}x{label.classes.shape[0]} pixels, its image {pair.image} "
                f"has {pixels.shape[1]}x{pixels.shape[0]}",
            )
        size, fit = (buffer.height, buffer.width), Fit.of(buffer)
        return fit_frame(pixels, *size, fit), fit_label(label.classes, *size, ignored, fit)


def label_map_of(settings: Settings, source: SourceSettings | None = None) -> LabelMap:
    """Return what label values mean by `source`, or by that of the configuration. Raises SourceRefused."""
    return LabelMap.of(source or settings.source, [(entry.name, entry.color) for entry in settings.classes])


def _stamp(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def _remove_leftovers(folder: Path) -> None:
    """Remove every set but the one in use, and leftovers of a killed import."""
    durable.remove_partials(folder)
    for old in old_sets(folder, current_fingerprint(folder)):
        durable.retire_directory(old)
