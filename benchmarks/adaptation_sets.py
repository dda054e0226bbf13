"""What `adaptation.py` adapts between: the labelled source, the target, and how a network is scored on both."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from adaptation_data import LabelledImage, labelled_part, predicted, score
from fundus import FIRST_TRAINED, sort_drive, source_folders
from fundus_scores import Truth, vessel_score

from adapters.networks.network import SegmentationNetwork
from configs.settings import Settings

PRESETS = Path(__file__).parent.parent / "configs" / "presets"
CLASSES = 11
"""Of CamVid."""

Parts = Mapping[str, tuple[LabelledImage, ...]]
"""The scored images by part: first the target's, then the source's."""


@dataclass(frozen=True, slots=True)
class DataSet:
    """A labelled source and a target whose labels are used for scoring only."""

    preset: Path
    """Settings of every arm."""
    target: str
    """Name of the scored target, as fields of the results and tables have it; all of it is adapted to."""
    source: str
    """Name of the scored source images; none of them is trained on."""
    measure: str
    """What is scored."""
    shown: tuple[str, ...]
    """Classes whose IoU stands in the table."""
    folders: Callable[[Path, Path], Mapping[str, Path]]
    """From the data's folder and the benchmark's WORK: `images`, `labels` and those of validation (`source`)."""
    prepare: Callable[[Path, Path], object]
    """Make these folders, before anything reads them."""
    parts: Callable[[Path], Parts]
    """The scored images of the data's folder."""
    scores: Callable[[SegmentationNetwork, Path, Settings], dict[str, Any]]
    """For each part a score (0-1) under its name, and IoU by class under `<name>_iou`."""


def _days(data: Path, work: Path) -> dict[str, Path]:
    folders = {"": data / "day_train", "validation_": data / "day_val"}
    return {f"{prefix}{kind}": folders[prefix] / kind for prefix in folders for kind in ("images", "labels")}


def _camvid(data: Path) -> Parts:
    return {"dusk": labelled_part(data / "dusk_stream", CLASSES), "day": labelled_part(data / "day_val", CLASSES)}


def _classes(network: SegmentationNetwork, data: Path, settings: Settings) -> dict[str, Any]:
    found = dict[str, Any]()
    for name, images in _camvid(data).items():
        evaluation = score(network, images, settings)
        found |= {name: evaluation.miou, f"{name}_iou": evaluation.iou}
    return found


@cache
def _fundus(data: Path) -> Parts:
    drive = labelled_part(data / "drive", 2)
    return {
        "STARE": labelled_part(data / "stare", 2),
        "DRIVE": tuple(one for one in drive if int(one.name) < FIRST_TRAINED),
    }


@cache
def _truths(data: Path) -> dict[str, list[Truth]]:
    """Thin the labels once a process."""
    return {name: [Truth.of(one.label) for one in images] for name, images in _fundus(data).items()}


def _vessels(network: SegmentationNetwork, data: Path, settings: Settings) -> dict[str, Any]:
    found = dict[str, Any]()
    for name, images in _fundus(data).items():
        scored = vessel_score(list(predicted(network, images, settings)), _truths(data)[name])
        found |= {name: scored.dice, f"{name}_iou": {"vessel": scored.iou}}
    return found


CAMVID = DataSet(
    preset=PRESETS / "camvid_adaptation.yaml",
    target="dusk",
    source="day",
    measure="mIoU",
    shown=(),
    folders=_days,
    prepare=lambda data, work: None,
    parts=_camvid,
    scores=_classes,
)
FUNDUS = DataSet(
    preset=PRESETS / "fundus.yaml",
    target="STARE",
    source="DRIVE",
    measure="Dice",
    shown=("vessel",),
    folders=lambda data, work: source_folders(work),
    prepare=sort_drive,
    parts=_fundus,
    scores=_vessels,
)
"""Retina photographs of two cameras; the score is the mean of the images' Dice of vessels."""
