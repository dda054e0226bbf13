"""Data sets as they are shipped: their own folders, file names and label formats, drawn small."""

from collections.abc import Callable, Mapping
from pathlib import Path
from unicodedata import normalize

import numpy as np
import pytest
from PIL import Image

from configs.class_list import load_class_list
from configs.settings import Settings
from storage.layout import StateLayout
from storage.source.labelled_import import import_labelled
from storage.source.pairing import pair_labels
from tests.sixteen_bits import SixteenBits

SIZE = (32, 32)
VOC = ["background", "aeroplane", "bicycle"]


def grey(*values: int) -> Image.Image:
    return Image.fromarray(np.resize(np.array(values, np.uint8), SIZE))


def paletted(*values: int) -> Image.Image:
    """VOC's palette: 0 black, 1 dark red, 2 dark green, 255 the border."""
    image = Image.frombytes("P", SIZE, grey(*values).tobytes())
    image.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0] + [0] * 756 + [224, 224, 192])
    return image


def colored(*values: tuple[int, int, int]) -> Image.Image:
    return Image.fromarray(np.resize(np.array(values, np.uint8), (*SIZE, 3)))


def black_and_white_gif() -> Image.Image:
    return grey(0, 0, 0, 255).convert("P")


def sixteen_bits(*values: int) -> SixteenBits:
    return SixteenBits(np.resize(np.array(values, np.uint16), SIZE))


DATA_SETS: dict[str, tuple[str, str, Image.Image | SixteenBits, object, Mapping[str, object], list[int]]] = {
    "Cityscapes, ids": (
        "leftImg8bit/train/aachen/aachen_000000_000019_leftImg8bit.png",
        "gtFine/train/aachen/aachen_000000_000019_gtFine_labelIds.png",
        grey(0, 7, 7, 33), "cityscapes",
        {"label_suffix": "_gtFine_labelIds", "label_format": "cityscapes_ids"}, [512, 0, 256, 256],
    ),
    "Cityscapes, train ids": (
        "leftImg8bit/val/bonn/bonn_000000_000019_leftImg8bit.png",
        "gtFine/val/bonn/bonn_000000_000019_gtFine_labelTrainIds.png",
        grey(255, 0, 0, 18), "cityscapes", {"label_suffix": "_gtFine_labelTrainIds"}, [512, 0, 256, 256],
    ),
    "Cityscapes, colours": (
        "leftImg8bit/val/bonn/bonn_000000_000019_leftImg8bit.png",
        "gtFine/val/bonn/bonn_000000_000019_gtFine_color.png",
        colored((0, 0, 0), (128, 64, 128), (128, 64, 128), (119, 11, 32)).convert("RGBA"), "cityscapes",
        {"label_suffix": "_gtFine_color", "label_format": "rgb", "label_map": {"#000000": "ignore"}},
        [512, 0, 256, 256],
    ),
    "GTA": (
        "images/00001.png", "labels/00001.png",
        paletted(0, 7, 34, 33), "cityscapes", {"label_format": "cityscapes_ids"}, [256, 0, 256, 512],
    ),
    "SYNTHIA": (
        "RGB/0000000.png", "GT/LABELS/0000000.png",
        sixteen_bits(0, 3, 22, 11), "cityscapes", {"label_format": "synthia_ids"}, [256, 0, 256, 512],
    ),
    "ADE20K": (
        "images/training/ADE_train_00000001.jpg", "annotations/training/ADE_train_00000001.png",
        grey(0, 1, 1, 150), "ade20k",
        {"label_format": "ade20k"}, [512, 0, 256, 256],
    ),
    "PASCAL Context": (
        "JPEGImages/2008_000002.jpg", "SegmentationClassContext/2008_000002.png",
        grey(0, 1, 1, 59), "pascal_context", {"label_format": "ade20k"}, [512, 0, 256, 256],
    ),
    "Mapillary Vistas": (
        "training/images/a_b-c.jpg", "training/labels/a_b-c.png",
        paletted(65, 0, 0, 64), "mapillary", {"label_map": {65: "ignore"}}, [512, 0, 256, 256],
    ),
    "ACDC": (
        "rgb_anon/fog/train/GOPR0475/GOPR0475_frame_000041_rgb_anon.png",
        "gt/fog/train/GOPR0475/GOPR0475_frame_000041_gt_labelTrainIds.png",
        grey(255, 0, 0, 18), "acdc", {"label_suffix": "_gt_labelTrainIds"}, [512, 0, 256, 256],
    ),
    "CamVid, colours": (
        "701_StillsRaw_full/0001TP_006690.png", "LabeledApproved_full/0001TP_006690_L.png",
        colored((128, 128, 128), (128, 0, 0), (0, 128, 192), (0, 0, 0)), "camvid",
        {"label_suffix": "_L", "label_format": "rgb", "label_map": {"0,0,0": None}}, [256, 256, 256, 256],
    ),
    "PASCAL VOC": (
        "JPEGImages/2007_000032.jpg", "SegmentationClass/2007_000032.png",
        paletted(0, 1, 2, 255), VOC, {"label_format": "palette"}, [256, 256, 256, 256],
    ),
    "DRIVE": (
        "training/images/21_training.tif", "training/1st_manual/21_manual1.gif",
        black_and_white_gif(), ["background", "vessel"],
        {"label_suffix": "_manual1", "label_map": {0: "background", 255: "vessel"}}, [768, 256, 256, 0],
    ),
    "STARE": (
        "images/im0001.ppm", "labels/im0001.ah.ppm",
        colored((0, 0, 0), (0, 0, 0), (0, 0, 0), (255, 255, 255)), ["background", "vessel"],
        {"label_suffix": ".ah", "label_format": "rgb",
         "label_map": {"0,0,0": "background", "255,255,255": "vessel"}}, [768, 256, 256, 0],
    ),
    "CHASE_DB1": (
        "images/Image_01L.jpg", "labels/Image_01L_1stHO.png",
        grey(0, 0, 0, 255).convert("1"), ["background", "vessel"], {"label_suffix": "_1stHO"}, [768, 256, 256, 0],
    ),
    "HRF": (
        "images/01_dr.JPG", "manual1/01_dr.tif",
        grey(0, 0, 0, 255), ["background", "vessel"], {"label_map": {0: 0, 255: 1}}, [768, 256, 256, 0],
    ),
}  # fmt: skip
"""Image, label, label pixels, class list, `source`; then the pixels of the first, second and last class and ignored."""


@pytest.mark.parametrize("name", DATA_SETS)
def test_a_data_set_is_imported_as_it_is_shipped(name: str, tmp_path: Path, layout: StateLayout):
    image, label, pixels, classes, source, expected = DATA_SETS[name]
    for path, content in ((image, Image.new("RGB", SIZE)), (label, pixels)):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        content.save(tmp_path / path)
    if isinstance(classes, list):
        classes = [{"name": name, "color": (0, 0, index)} for index, name in enumerate(classes)]
    folders = {"images": tmp_path / image.split("/")[0], "labels": tmp_path / label.split("/")[0]}
    if folders["images"] == folders["labels"]:
        folders = {"images": (tmp_path / image).parent, "labels": (tmp_path / label).parent}
    if label.startswith("GT/LABELS/"):
        folders["labels"] /= "LABELS"
    settings = Settings.model_validate({
        "state": tmp_path / "state", "classes": classes, "watch": {"folder": tmp_path / "drop"},
        "buffer": {"height": 32, "width": 32}, "source": {**folders, **source},
    })  # fmt: skip
    found = import_labelled(settings, layout)
    counts = found.class_pixels[0].tolist()
    assert [counts[0], counts[1], counts[-1], int((found.labels.read(0) == 255).sum())] == expected
    assert len(counts) == (len(load_class_list(classes)) if isinstance(classes, str) else len(classes))


@pytest.fixture
def touch(tmp_path: Path) -> Callable[..., None]:
    def make(*names: str) -> None:
        for name in names:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).touch()

    return make


NAME = "straße-ä"


@pytest.mark.parametrize("ending", ["jfif", "JFIF", "jpe", "jpeg", "tif", "webp", "avif", "j2k", "bmp", "heic", "ppm"])
def test_images_of_every_known_ending_are_found(tmp_path: Path, touch, ending: str):
    touch(f"i/a.{ending}", "l/a.png")
    assert len(pair_labels(tmp_path / "i", tmp_path / "l")) == 1


@pytest.mark.parametrize("ending", ["png", "PNG", "Png", "gif", "bmp", "TIF", "tiff", "pgm"])
def test_labels_of_every_lossless_ending_are_found(tmp_path: Path, touch, ending: str):
    touch("i/a.png", f"l/a_x.{ending}")
    assert pair_labels(tmp_path / "i", tmp_path / "l", "_x")[0].label.name == f"a_x.{ending}"


@pytest.mark.parametrize("image", ["NFC", "NFD"])
@pytest.mark.parametrize("label", ["NFC", "NFD"])
def test_names_and_folders_pair_in_either_unicode_form(tmp_path: Path, touch, image: str, label: str):
    touch(normalize(image, f"i/{NAME}/{NAME}.jpg"), normalize(label, f"l/{NAME}/{NAME}_ö.png"))
    touch(normalize(image, f"i/{NAME}2.jpg"), normalize(label, f"l/{NAME}2_ö.png"))
    assert len(pair_labels(tmp_path / "i", tmp_path / "l", "_ö")) == 2
