"""Read the canary images: those that `mfmd canary add` put into the state directory, and those of `canary.images`.

canary/files/images, labels   added pairs: PNG, labels are class indices
canary/files/classes.json     the class list that they index
canary/added, configured      sets at frame size that are read from those files, and from the configured folders
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from configs.buffer import SourceSettings
from configs.settings import Settings
from storage import durable
from storage.canary.records import CanaryClasses, CanaryState
from storage.durable.record import read_record
from storage.errors import CanaryRefused, RefusedImage, SourceRefused
from storage.layout import StateLayout
from storage.media.bounded import DecodeLimits
from storage.media.images import crc32_of
from storage.source.label_survey import LabelSurvey
from storage.source.labelled import LabelledSet
from storage.source.labelled_import import import_set, label_map_of
from storage.source.pairing import read_pair, refusal

IGNORED = 255
"""Value of added labels outside every class."""


class CanaryImage(NamedTuple):
    """One labelled target image at frame size, without padding."""

    name: str
    """Its name, with `added/` or `configured/` before it."""
    pixels: NDArray[np.uint8]
    """[h, w, 3] RGB."""
    label: NDArray[np.uint8]
    """Class indices, or `IGNORED` where nothing is labelled, [h, w]."""
    crc32: int
    """CRC-32 of the frame: that of a frame of the buffer with the same content."""


def files_of(layout: StateLayout) -> tuple[Path, Path]:
    """Return the folders of added images and labels."""
    return layout.canary / "files" / "images", layout.canary / "files" / "labels"


def canary_sources(settings: Settings, layout: StateLayout) -> dict[Path, SourceSettings]:
    """Return how canary files are read, by the folder of the set; empty when there are none.

    Raises CanaryRefused when added labels index another class list than `classes`.
    """
    found, (images, labels) = {}, files_of(layout)
    added, configured = layout.canary_sets
    if any(images.glob("*.png")):
        names, path = tuple(item.name for item in settings.classes), images.parent / "classes.json"
        known = read_record(path, CanaryClasses, f"; add the images again, after removing {images.parent}")
        if known is None or known.names != names:
            listed = ", ".join(known.names) if known else "no list"
            raise CanaryRefused(
                f"{path}: canary labels index the classes {listed}; `classes` has {', '.join(names)}: "
                f"correct `classes`, or remove {images.parent} and add labels of this list"
            )
        ignored = settings.source.ignore_index if settings.source else IGNORED
        meant = {str(IGNORED): None}  # also says that the values are meant, were they of one class only
        found[added] = SourceSettings(images=images, labels=labels, ignore_index=ignored, label_map=meant)
    if own := settings.canary.as_source(settings.source):
        found[configured] = own
    return found


def import_canary(settings: Settings, layout: StateLayout) -> list[CanaryImage]:
    """Read all canary images with a labelled pixel; one that stands there twice counts once.

    Raises CanaryRefused when a file or label cannot be used: nothing is left out silently. Raises StorageError when the
    state directory is damaged. How many count, or why none does, is noted in `state.json`.
    """
    try:
        found = _all(settings, layout)
    except CanaryRefused as error:
        _note(layout, CanaryState(problem=str(error)))
        raise
    if found or layout.canary.exists():
        _note(layout, CanaryState(images=len(found), checksum=_checksum(found)))
    return found


def _checksum(images: Iterable[CanaryImage]) -> int:
    return crc32_of(np.array([(item.crc32, crc32_of(item.label)) for item in images], np.int64).view(np.uint8))


def _note(layout: StateLayout, now: CanaryState) -> None:
    path = layout.canary / "state.json"
    if read_record(path, CanaryState) != now:
        durable.make_directory(layout.canary)
        durable.write_record(path, now)


def _all(settings: Settings, layout: StateLayout) -> list[CanaryImage]:
    found: dict[int, CanaryImage] = {}
    for folder, source in canary_sources(settings, layout).items():
        try:
            labelled = import_set(settings, source, folder)
        except SourceRefused as error:
            raise refused(error, settings) from error
        except OSError as error:
            raise CanaryRefused(f"canary images not read: {error}") from error
        for image in _images(labelled, folder.name):
            twin = found.setdefault(image.crc32, image)
            if not np.array_equal(twin.label, image.label):
                raise CanaryRefused(
                    f"{image.name} and {twin.name} are one image with two different labels; remove one of the pairs"
                )
    return list(found.values())


def canary_sizes(settings: Settings, layout: StateLayout) -> list[tuple[str, int, int]]:
    """Return name, height and width (pixels) of the labelled images that were read last, without reading pixels.

    Raises CanaryRefused like `canary_sources`, and StorageError when a set is damaged.
    """
    folders = [folder for folder in canary_sources(settings, layout) if (folder / "current.json").exists()]
    return [
        (f"{folder.name}/{name}", height, width)
        for folder in folders
        for labelled in (LabelledSet.in_folder(folder),)
        for name, (height, width), pixels in zip(labelled.names, labelled.valid, labelled.class_pixels, strict=True)
        if pixels.any()
    ]


def survey_canary(settings: Settings, layout: StateLayout) -> list[LabelSurvey]:
    """Read every canary image and label without writing anything; one survey a folder, none without images.

    Raises CanaryRefused with every problem.
    """
    limits, found, problems = DecodeLimits.of(settings.watch), list[LabelSurvey](), list[str]()
    for source in canary_sources(settings, layout).values():
        try:
            found.append(LabelSurvey(settings, source))
        except SourceRefused as error:
            raise refused(error, settings) from error
        for pair in found[-1].pairs:
            try:
                pixels, label = read_pair(pair, label_map_of(settings, source), limits)
                if label.classes.shape != pixels.shape[:2]:
                    height, width = label.classes.shape
                    size = f"{pixels.shape[1]}x{pixels.shape[0]}"
                    problems.append(f"{pair.label}: {width}x{height} pixels, its image {pair.image} has {size}")
            except (RefusedImage, OSError) as error:
                problems.append(str(error))
    if problems:
        raise refused(refusal(problems), settings)
    return found


def refused(error: SourceRefused, settings: Settings) -> CanaryRefused:
    """Return the error about canary labels that says what `error` says, with the names of their settings."""
    text = str(error).replace("labelled images not imported", "canary images not read")
    if settings.canary.advanced.label_format is not None:
        text = text.replace("source.label_", "canary.advanced.label_")
    return CanaryRefused(text)


def known_checksums(layout: StateLayout) -> set[int]:
    """Return the CRC-32 of every canary image that was read last: frames of this content are never used by a round.

    Raises StorageError when a set is damaged.
    """
    sets = [LabelledSet.in_folder(folder) for folder in layout.canary_sets if (folder / "current.json").exists()]
    return {crc32_of(item.images.read(index)) for item in sets for index in range(len(item))}


def _images(labelled: LabelledSet, where: str) -> Iterator[CanaryImage]:
    for index, (height, width) in enumerate(labelled.valid):
        if not labelled.class_pixels[index].any():
            continue
        frame, label = labelled.images.read(index), labelled.labels.read(index)
        name = f"{where}/{labelled.names[index]}"
        classes = np.where(label == labelled.ignore_index, np.uint8(IGNORED), label)
        yield CanaryImage(name, frame[:height, :width], classes[:height, :width], crc32_of(frame))
