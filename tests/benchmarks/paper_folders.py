"""Two drawn images of each data set of `benchmarks/paper.py`, labels included, in its own layout and names."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tests.sixteen_bits import SixteenBits

CITY, SEQUENCE = "aachen/aachen_{:06d}_000019", "GOPR0475/GOPR0475_frame_{:06d}"
CONDITIONS = ("fog", "night", "rain", "snow")
CITYSCAPES_IDS = {
    0: 255, 1: 255, 2: 255, 3: 255, 4: 255, 5: 255, 6: 255, 7: 0, 8: 1, 9: 255, 10: 255, 11: 2, 12: 3, 13: 4, 14: 255,
    15: 255, 16: 255, 17: 5, 18: 255, 19: 6, 20: 7, 21: 8, 22: 9, 23: 10, 24: 11, 25: 12, 26: 13, 27: 14, 28: 15,
    29: 255, 30: 255, 31: 16, 32: 17, 33: 18,
}  # fmt: skip
"""Cityscapes' label script: id -> train id; GTA has the same, and 34."""
SYNTHIA_IDS = {
    0: 255, 1: 10, 2: 2, 3: 0, 4: 1, 5: 4, 6: 8, 7: 5, 8: 13, 9: 7, 10: 11, 11: 18, 12: 17, 13: 255, 14: 255, 15: 6,
    16: 9, 17: 12, 18: 14, 19: 15, 20: 16, 21: 3, 22: 255,
}  # fmt: skip
"""Readme of SYNTHIA-RAND-CITYSCAPES in the train ids of Cityscapes."""
TRAIN_IDS = {**{index: index for index in range(19)}, 255: 255}
REFUGE_GREYS = {0: 2, 128: 1, 255: 0}
"""Cup, rim of the disc, background."""
VALUES: dict[str, Mapping[int, int]] = {
    "gta": {**CITYSCAPES_IDS, 34: 255},
    "synthia": SYNTHIA_IDS,
    "cityscapes": CITYSCAPES_IDS,
    "acdc": TRAIN_IDS,
    "refuge": REFUGE_GREYS,
}
"""By data set: label value -> class index, 255 where it is ignored."""

SIZE = (36, 64)


def drawn_label(values: Mapping[int, int], number: int) -> NDArray[np.uint16]:
    """Return a label [h, w] of stripes that hold every value, shifted by `number`."""
    stripes = np.repeat(np.array(sorted(values), np.uint16), 4)
    return np.roll(np.resize(stripes, SIZE), number, axis=1)


def draw_all(data: Path) -> None:
    """Draw every data set below `data`."""
    for draw in (draw_gta, draw_synthia, draw_cityscapes, draw_acdc, draw_refuge):
        draw(data)


def draw_gta(data: Path) -> None:
    """`images/00001.png`, `labels/00001.png`: ids in a palette."""
    for number in (1, 2):
        _photo(data / f"gta/images/{number:05d}.png", number)
        label = Image.fromarray(drawn_label(VALUES["gta"], number - 1).astype(np.uint8)).convert("L")
        paletted = Image.frombytes("P", label.size, label.tobytes())
        paletted.putpalette([channel for index in range(256) for channel in (index, 255 - index, 7)])
        _save(paletted, data / f"gta/labels/{number:05d}.png")


def draw_synthia(data: Path) -> None:
    """`RGB/0000000.png`, `GT/LABELS/0000000.png`: ids in the first of three channels of 16 bits."""
    for number in (0, 1):
        _photo(data / f"synthia/RGB/{number:07d}.png", 10 + number)
        path = data / f"synthia/GT/LABELS/{number:07d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        SixteenBits(drawn_label(VALUES["synthia"], number)).save(path)


def draw_cityscapes(data: Path) -> None:
    """`leftImg8bit/SPLIT/CITY/..._leftImg8bit.png`, `gtFine/SPLIT/CITY/..._gtFine_labelIds.png` and its neighbours."""
    for split in ("train", "val"):
        for number in (0, 1):
            stem = CITY.format(number + 2 * (split == "val"))
            _photo(data / f"cityscapes/leftImg8bit/{split}/{stem}_leftImg8bit.png", 20 + number + 2 * (split == "val"))
            label = _grey(VALUES["cityscapes"], number)
            _save(label, data / f"cityscapes/gtFine/{split}/{stem}_gtFine_labelIds.png")
            _save(label.convert("RGBA"), data / f"cityscapes/gtFine/{split}/{stem}_gtFine_color.png")
            (data / f"cityscapes/gtFine/{split}/{stem}_gtFine_polygons.json").write_text("{}")


def draw_acdc(data: Path) -> None:
    """`rgb_anon/CONDITION/SPLIT/SEQUENCE/..._rgb_anon.png`, `gt/..._gt_labelTrainIds.png`; test has no labels.

    One image a split and condition; `*_ref` has images of the same places in clear weather.
    """
    for number, name in enumerate(CONDITIONS):
        for place, split in enumerate(("train", "val", "test")):
            stem, seed = SEQUENCE.format(10 * number + place), 100 + 10 * number + 2 * place
            _photo(data / f"acdc/rgb_anon/{name}/{split}/{stem}_rgb_anon.png", seed)
            _photo(data / f"acdc/rgb_anon/{name}/{split}_ref/{stem}_rgb_ref_anon.png", seed + 1)
            if split != "test":
                _save(_grey(VALUES["acdc"], number), data / f"acdc/gt/{name}/{split}/{stem}_gt_labelTrainIds.png")
                _save(_grey({0: 0, 1: 0}, number), data / f"acdc/gt/{name}/{split}/{stem}_gt_invIds.png")


def draw_refuge(data: Path) -> None:
    """`Training400/KIND/n0001.jpg` and bitmaps of three greys; the validation set is flat."""
    for number, (kind, stem) in enumerate((("Glaucoma", "g0001"), ("Non-Glaucoma", "n0001"))):
        masks = data / f"refuge/Annotation-Training400/Disc_Cup_Masks/{kind}/{stem}.bmp"
        _photo(data / f"refuge/Training400/{kind}/{stem}.jpg", 200 + number)
        _save(_grey(VALUES["refuge"], number), masks)
        _photo(data / f"refuge/REFUGE-Validation400/V000{number + 1}.jpg", 210 + number)
        truth = data / f"refuge/REFUGE-Validation400-GT/Disc_Cup_Masks/V000{number + 1}.bmp"
        _save(_grey(VALUES["refuge"], number), truth)


def _grey(values: Mapping[int, int], number: int) -> Image.Image:
    return Image.fromarray(drawn_label(values, number).astype(np.uint8))


def _photo(path: Path, seed: int) -> None:
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 8, 3), np.uint8)
    _save(Image.fromarray(coarse).resize(SIZE[::-1], Image.Resampling.BICUBIC), path)


def _save(image: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
