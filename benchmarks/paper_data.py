"""List the data sets of `paper.py` in their own layout: images, labels, and the settings of `source` that fit.

The product's import pairs and reads the files; this module reads no label.
"""

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from configs.watch import WatchSettings
from storage.errors import SourceRefused
from storage.source.pairing import LabelledPair, pair_labels, refusal

Labels = Mapping[str, Any]
"""One form in which the labels of a data set are found: `source.label_suffix`, `label_format` and `label_map`."""


@dataclass(frozen=True, slots=True)
class Part:
    """Images and labels of one split, or of one condition of a split, below the folder of the data set."""

    images: str
    labels: str


@dataclass(frozen=True, slots=True)
class DataSet:
    """A data set as it is published."""

    title: str
    folder: str
    """Folder below DATA."""
    classes: Any
    """What `classes` in the configuration is."""
    train: Part
    labels: tuple[Labels, ...]
    """The published form first, then those that usual scripts convert to."""
    validation: tuple[Part, ...] = ()
    """All images that are scored."""
    target: str = ""
    """Folder of unlabelled target images, all that it holds but `ignore`."""
    ignore: tuple[str, ...] = ()
    """Names of folders below `target` that are of other splits."""


CITYSCAPES_IDS, TRAIN_IDS = {"label_format": "cityscapes_ids"}, {"label_suffix": "_labelTrainIds"}
CONDITIONS = ("fog", "night", "rain", "snow")
DISC_AND_CUP = (
    {"name": "background", "color": [0, 0, 0]},
    {"name": "disc", "color": [128, 128, 128]},
    {"name": "cup", "color": [255, 255, 255]},
)
"""Classes that exclude each other: `disc` is the rim, without the cup."""

DATA_SETS = {
    "gta": DataSet(
        title="GTA",
        folder="gta",
        classes="cityscapes",
        train=Part("images", "labels"),
        labels=(CITYSCAPES_IDS, TRAIN_IDS),
    ),
    "synthia": DataSet(
        title="SYNTHIA",
        folder="synthia",
        classes="cityscapes",
        train=Part("RGB", "GT/LABELS"),
        labels=({"label_format": "synthia_ids"}, TRAIN_IDS),
    ),
    "cityscapes": DataSet(
        title="Cityscapes",
        folder="cityscapes",
        classes="cityscapes",
        train=Part("leftImg8bit/train", "gtFine/train"),
        labels=(
            {"label_suffix": "_gtFine_labelIds", **CITYSCAPES_IDS},
            {"label_suffix": "_gtFine_labelTrainIds"},
        ),
        validation=(Part("leftImg8bit/val", "gtFine/val"),),
        target="leftImg8bit/train",
    ),
    "acdc": DataSet(
        title="ACDC",
        folder="acdc",
        classes="acdc",
        train=Part("rgb_anon", "gt"),
        labels=(
            {"label_suffix": "_gt_labelTrainIds"},
            {"label_suffix": "_gt_labelIds", **CITYSCAPES_IDS},
        ),
        validation=tuple(Part(f"rgb_anon/{name}/val", f"gt/{name}/val") for name in CONDITIONS),
        target="rgb_anon",
        ignore=("val", "test", "*_ref"),
    ),
    "refuge": DataSet(
        title="REFUGE",
        folder="refuge",
        classes=list(DISC_AND_CUP),
        train=Part("Training400", "Annotation-Training400/Disc_Cup_Masks"),
        labels=({"label_map": {0: "cup", 128: "disc", 255: "background"}},),
        validation=(Part("REFUGE-Validation400", "REFUGE-Validation400-GT/Disc_Cup_Masks"),),
        target="REFUGE-Validation400",
    ),
}
"""By their name on the command line and in rows.

GTA: Richter et al. 2016. SYNTHIA: SYNTHIA-RAND-CITYSCAPES, Ros et al. 2016. Folder names as in the DAFormer framework.
"""


@dataclass(frozen=True, slots=True)
class Found:
    """A labelled split on the disk: a folder of images and one of labels, and how labels are read."""

    images: Path
    labels: Path
    source: Mapping[str, Any]
    """`label_suffix`, `label_format` and `label_map` of the form that was found."""
    pairs: tuple[LabelledPair, ...]

    def settings(self) -> dict[str, Any]:
        """Return it as the section `source`."""
        return {"images": str(self.images), "labels": str(self.labels), **self.source}


def find_train(data: Path, name: str) -> Found:
    """Return the labelled training images of a data set. Raises SourceRefused like `find_part`."""
    return find_part(data, DATA_SETS[name], DATA_SETS[name].train)


def find_validation(data: Path, name: str, links: Path) -> Found:
    """Return the images that are scored; those of several folders as links to the files below `links`/`name`.

    Raises SourceRefused like `find_part`, for all folders together.
    """
    chosen, found, problems = DATA_SETS[name], list[tuple[Part, Found]](), list[str]()
    for part in chosen.validation:
        try:
            found.append((part, find_part(data, chosen, part)))
        except SourceRefused as error:
            problems += error.problems
    if problems:
        raise refusal(problems)
    if len(found) == 1:
        return found[0][1]
    if len({str(one.source) for _, one in found}) > 1:
        raise refusal([f"{data / chosen.folder}: labels of different forms in {', '.join(p.labels for p, _ in found)}"])
    return _linked(found, links / name)


def find_part(data: Path, chosen: DataSet, part: Part) -> Found:
    """Return one labelled part, in the form of labels that all its images have.

    Raises SourceRefused with every image that has no label, in the form that most have, or whose label has another
    size; and for folders that are missing or hold no image.
    """
    images, labels = data / chosen.folder / part.images, data / chosen.folder / part.labels
    if missing := [folder for folder in (images, labels) if not folder.is_dir()]:
        raise refusal([f"{folder}: no such folder of {chosen.title}" for folder in missing])
    refused = list[SourceRefused]()
    for form in chosen.labels:
        try:
            pairs = tuple(pair_labels(images, labels, form.get("label_suffix", "")))
        except SourceRefused as error:
            refused.append(error)
        else:
            if odd := [problem for pair in pairs if (problem := _sizes_differ(pair))]:
                raise refusal(odd)
            return Found(images, labels, form, pairs)
    raise min(refused, key=lambda error: len(error.problems))


def target_images(data: Path, name: str) -> tuple[Path, tuple[str, ...]]:
    """Return the folder of target images as it lies, and `watch.ignore` for it."""
    chosen = DATA_SETS[name]
    usual: Sequence[str] = WatchSettings.model_fields["ignore"].default
    return data / chosen.folder / chosen.target, (*usual, *chosen.ignore)


def _sizes_differ(pair: LabelledPair) -> str:
    """Return what is wrong with the sizes in the headers of a pair; what cannot be read is left to the import."""
    try:
        with Image.open(pair.image) as image, Image.open(pair.label) as label:
            sizes = image.size, label.size
    except OSError:
        return ""
    return "" if sizes[0] == sizes[1] else f"{pair.label}: {sizes[1]} pixels, its image {pair.image} has {sizes[0]}"


def _linked(found: Sequence[tuple[Part, Found]], folder: Path) -> Found:
    """Return one split made of several parts: links to their files below `folder`/images and `folder`/labels."""
    if folder.exists():
        shutil.rmtree(folder)
    pairs = list[LabelledPair]()
    for number, (_, one) in enumerate(found):
        for pair in one.pairs:
            name = f"{number}/{pair.name}"
            image = folder / "images" / name
            label = (folder / "labels" / name).parent / pair.label.name
            for link, file in ((image, pair.image), (label, pair.label)):
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(os.path.abspath(file))  # noqa: PTH100 - links of the data set itself stay as they are
            pairs.append(LabelledPair(name, image, label))
    return Found(folder / "images", folder / "labels", found[0][1].source, tuple(pairs))
