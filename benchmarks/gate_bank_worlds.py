"""The worlds of the gate's bank: a released model, unlabelled target frames in a buffer, hidden labels for the truth.

Three are drawn (dusk, fog, night, from a model of day), CamVid goes from day to dusk, and DRIVE to STARE changes the
camera of retina photographs. Each buffer also holds frames that a round should not learn from.
"""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml
from adaptation_data import LabelledImage, Pixels, fill_buffer, labelled_part
from gate_worlds import drawn, world_folder
from shifts import night

from adapters.rounds.source_training import pretrain
from configs.settings import Settings
from daemon.demo.driving import read_plain_settings
from storage.buffer.frames import FrameBuffer
from storage.layout import StateLayout
from storage.registry.registry import CheckpointRegistry

FRAMES = {"train": 48, "holdout": 24}
"""Frames of a drawn world that rounds train on, and that the gate scores."""
WRONG = 24
"""Frames of each kind that rounds should not learn from."""
WRONG_WORLD = {"dusk": "night", "fog": "dusk", "night": "fog"}
"""Which drawn world is the wrong one for another."""
SEEDS = {"train": 3_000_000, "holdout": 3_100_000, "wrong": 3_200_000}


class BankWorld(NamedTuple):
    """One world, ready for rounds and scores."""

    name: str
    """Its name."""
    settings: Settings
    """Its settings; `state` holds the released version 1, the labelled source and the buffer."""
    groups: Mapping[str, tuple[int, ...]]
    """Ids of the frames: train, holdout, wrong (another condition), noise, swapped (BGR), copies (of one frame)."""
    hidden: tuple[LabelledImage, ...]
    """Labelled target images; only the truth reads them."""


def open_world(name: str, root: Path, data: Path) -> BankWorld:
    """Make the world `name` below `root`, or open it; `data` holds camvid and fundus."""
    make = {"camvid": _camvid, "fundus": _fundus}.get(name)
    return make(root / name, data) if make else _drawn(name, root)


def _drawn(name: str, root: Path) -> BankWorld:
    if not (root / "released" / "done").exists():
        world_folder(root)
    settings = read_plain_settings(root / "released" / "mfmd.yaml")
    state = root / name / "state"
    if not state.exists():
        shutil.copytree(root / "released" / "state", state)
    settings = settings.model_copy(update={"state": state})
    parts: dict[str, tuple[LabelledImage, ...]] = {}
    if not _filled(settings):
        for part, count in FRAMES.items():
            parts[part] = _pictures(root / name / part, name, SEEDS[part], count)
        parts["wrong"] = _pictures(root / name / "wrong", WRONG_WORLD[name], SEEDS["wrong"], WRONG)
    groups = _fill(settings, parts)
    return BankWorld(name, settings, groups, labelled_part(root / "released" / "test" / name, len(settings.classes)))


def _pictures(folder: Path, world: str, first: int, count: int) -> tuple[LabelledImage, ...]:
    drawn(folder, world, first, count, labelled=True)
    return labelled_part(folder, 8)


def _camvid(root: Path, data: Path) -> BankWorld:
    preset = Path(__file__).parent.parent / "configs" / "presets" / "camvid_day2dusk.yaml"
    values = yaml.safe_load(preset.read_text(encoding="utf-8"))
    values["buffer"] |= {"height": 144, "width": 192, "advanced": {"tile": 48}}
    values["pretrain"] |= {"steps": 1200, "crop_height": 112, "crop_width": 144}
    values["round"] |= {"crop_height": 112, "crop_width": 144, "mixed_precision": "no"}
    folder = data / "camvid"
    parts = {"images": "day_train/images", "labels": "day_train/labels"}
    parts |= {"validation_images": "day_val/images", "validation_labels": "day_val/labels"}
    settings = _trained(values, root, {key: folder / part for key, part in parts.items()})
    dusk = labelled_part(folder / "dusk_stream", len(settings.classes))
    held = dusk[2::5][:12] + dusk[4::5][:12]
    training = tuple(one for one in dusk if one not in held)
    wrong = tuple(
        LabelledImage(one.name + "-night", night(one.image, number), one.label)
        for number, one in enumerate(labelled_part(folder / "day_val", len(settings.classes))[:WRONG])
    )
    return BankWorld("camvid", settings, _fill(settings, {"train": training, "holdout": held, "wrong": wrong}), dusk)


def _fundus(root: Path, data: Path) -> BankWorld:
    preset = Path(__file__).parent.parent / "configs" / "presets" / "demo.yaml"
    values = yaml.safe_load(preset.read_text(encoding="utf-8"))
    values["classes"] = ["background", "vessel"]
    values["buffer"] |= {"height": 256, "width": 256, "advanced": {"tile": 64}}
    values["pretrain"] |= {"steps": 600, "crop_height": 160, "crop_width": 160, "batch_size": 4}
    values["round"] |= {"crop_height": 160, "crop_width": 160, "batch_size": 2}
    folder = data / "fundus"
    settings = _trained(values, root, {key: folder / "drive" / key for key in ("images", "labels")})
    stare = labelled_part(folder / "stare", 2)
    wrong = tuple(LabelledImage(one.name + "-inverted", 255 - one.image, one.label) for one in stare[:8])
    return BankWorld(
        "fundus", settings, _fill(settings, {"train": stare[0::2], "holdout": stare[1::2], "wrong": wrong}), stare
    )


def _trained(values: dict[str, Any], root: Path, source: Mapping[str, Path]) -> Settings:
    """Return settings with the paths of `root`, whose version 1 is trained on `source`."""
    values = {**values, "state": str(root / "state"), "watch": {"folder": str(root / "drop")}}
    values["source"] = {key: str(path) for key, path in source.items()}
    settings = Settings.model_validate(values)
    layout = StateLayout(settings.state)
    if not layout.checkpoints.is_dir() or not CheckpointRegistry(layout.checkpoints).versions():
        manifest = pretrain(settings)
        print(f"{root.name}: source model {manifest.scores.get('source_miou')}", flush=True)
    return settings


def _filled(settings: Settings) -> bool:
    layout = StateLayout(settings.state)
    if not layout.frames_zarr.exists():
        return False
    with FrameBuffer.open(layout, settings.buffer, writable=False) as buffer:
        return bool(buffer.records())


def _fill(settings: Settings, parts: Mapping[str, tuple[LabelledImage, ...]]) -> dict[str, tuple[int, ...]]:
    """Put the parts and the harmful frames made from them into the buffer; return the ids of each group.

    The group of a frame is part of its file's name, so that a filled buffer needs no other record.
    """
    if not _filled(settings):
        everything = dict(parts)
        train = parts["train"]
        everything["noise"] = _altered(train, lambda image, seed: _noise(image, seed))
        everything["swapped"] = _altered(train, lambda image, seed: np.ascontiguousarray(image[..., ::-1]))
        everything["copies"] = _altered((train[0],) * WRONG, _nearly)
        images = [
            LabelledImage(f"{group}-{number:03d}", one.image, one.label)
            for group, part in everything.items()
            for number, one in enumerate(part)
        ]
        fill_buffer(settings.state, settings, images)
    groups: dict[str, tuple[int, ...]] = {}
    with FrameBuffer.open(StateLayout(settings.state), settings.buffer, writable=False) as buffer:
        for record in buffer.records():
            group = record.name.split("-", 1)[0]
            groups[group] = (*groups.get(group, ()), record.id)
    return groups


def _altered(images: tuple[LabelledImage, ...], change: Callable[[Pixels, int], Pixels]) -> tuple[LabelledImage, ...]:
    return tuple(
        LabelledImage(one.name, change(one.image, number), one.label) for number, one in enumerate(images[:WRONG])
    )


def _noise(image: Pixels, seed: int) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, image.shape, np.uint8)


def _nearly(image: Pixels, seed: int) -> Pixels:
    """Return `image` with one pixel changed: other bytes, the same picture."""
    other = image.copy()
    other[seed % image.shape[0], 0] = seed % 256
    return other
