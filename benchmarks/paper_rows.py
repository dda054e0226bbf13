"""Hold the published tables as data: source, target, network, recipe, with and without MFM, and the published figures.

The figures come from the papers' own read-me files and from notes on the papers (docs/explanation/sources.md): the full
texts were not available. `None` is a row of which no figure was found.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PRESETS = Path(__file__).parent.parent / "configs" / "presets"
STEPS = 40_000
"""Steps of every published run (DAFormer framework)."""
ARMS: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("", {"mfm.enabled": False}),
    "mfm": (" + MFM", {"mfm.enabled": True}),
    "dida": (" + DiDA", {"mfm.enabled": False, "recipe.advanced.dida.enabled": True}),
    "blda": (" + BLDA", {"mfm.enabled": False, "recipe.advanced.blda.enabled": True}),
}
"""What is added to a recipe: title and settings."""
MFM, DIDA, BLDA = "2509.13801", "2412.10339", "2512.06886"
SUBSETS: dict[str, tuple[str, ...]] = {
    "19": (),
    "16": ("terrain", "truck", "train"),
    "13": ("terrain", "truck", "train", "wall", "fence", "pole"),
    "disc, cup": ("background",),
}
"""Classes of a mean: its name in the table -> classes that it leaves out. The network has all of them."""


@dataclass(frozen=True, slots=True)
class Published:
    """One published figure."""

    arm: str
    """Key of ARMS."""
    classes: str
    """Key of SUBSETS."""
    miou: float | None
    """mIoU (percent); None: none was found."""
    paper: str
    """Where it stands: arXiv number."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a published table, with the arms that have a figure."""

    source: str
    """Labelled data set, key of `paper_data.DATA_SETS`."""
    target: str
    """Data set that the network is adapted to."""
    method: str
    """As the table names it."""
    network: str
    """As the table names it."""
    preset: str
    """Configuration of the product that the row starts from."""
    figures: tuple[Published, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Beyond the preset's, by dotted name."""
    note: str = ""
    """What is not as in the paper."""

    def arms(self) -> list[str]:
        """Return the arms with a figure or a place for one, in the order of ARMS."""
        return [arm for arm in ARMS if any(figure.arm == arm for figure in self.figures)]

    def classes(self) -> list[str]:
        """Return the means of this row, in the order of SUBSETS."""
        return [name for name in SUBSETS if any(figure.classes == name for figure in self.figures)]

    def figure(self, arm: str, classes: str) -> Published:
        """Return the figure; one without a value when none was found."""
        for one in self.figures:
            if (one.arm, one.classes) == (arm, classes):
                return one
        return Published(arm, classes, None, "")


def _of(classes: str, *figures: tuple[str, float | None, str]) -> tuple[Published, ...]:
    return tuple(Published(arm, classes, miou, paper) for arm, miou, paper in figures)


R101 = {"network.name": "deeplabv2", "network.encoder": "resnet101", "network.advanced.output_stride": 8}
MIC_ON_HRDA = {"recipe.name": "mic", "recipe.masked_image_weight": 1.0}
"""Blocks of 64 of a 1024 crop and a ratio of 0.7 are the recipe's defaults."""
NO_MARGINS = {f"recipe.margin_{side}": 0.0 for side in ("top", "bottom", "left", "right")}
"""Margins are for Cityscapes as the target: its rectification leaves artefacts at the border (MIC's experiments.py)."""
TO_ACDC = {**NO_MARGINS, "buffer.height": 540}
"""Both data sets at their published sizes: ACDC 960x540, Cityscapes 1024x512, padded by 28 rows."""
TO_ACDC_HIGH = {**NO_MARGINS, "buffer.height": 1080}
"""The same at twice the size, for HRDA."""
MIT, DLV2 = "DAFormer, MiT-B5", "DeepLabV2, ResNet-101"
TEST_SPLIT = "published on the test split, whose labels are withheld; scored on the validation split"

ROWS = {
    "gta-dacs": Row(
        "gta", "cityscapes", "DACS", DLV2, "gta2cityscapes_dacs_deeplabv2",
        _of("19", ("plain", 52.1, "2007.08702"), ("mfm", 55.9, MFM), ("blda", 54.7, BLDA)),
        note="52.1 is DACS's own code; in the DAFormer framework it reaches more",
    ),
    "gta-daformer": Row(
        "gta", "cityscapes", "DAFormer", MIT, "gta2cityscapes_daformer",
        _of("19", ("plain", 68.3, "2111.14887"), ("mfm", 70.3, MFM), ("dida", 70.3, DIDA), ("blda", 70.7, BLDA)),
    ),
    "gta-hrda": Row(
        "gta", "cityscapes", "HRDA", MIT, "gta2cityscapes_hrda",
        _of("19", ("plain", 73.8, "2204.13132"), ("mfm", 75.4, MFM), ("dida", 75.4, DIDA), ("blda", 75.6, BLDA)),
    ),
    "gta-mic": Row(
        "gta", "cityscapes", "MIC (HRDA)", MIT, "gta2cityscapes_hrda",
        _of("19", ("plain", 75.9, "2212.01322"), ("mfm", 77.5, MFM), ("dida", 76.8, DIDA), ("blda", 77.1, BLDA)),
        MIC_ON_HRDA,
    ),
    "gta-dacs-r50": Row(
        "gta", "cityscapes", "DACS", "DeepLabV2, ResNet-50", "gta2cityscapes_dacs_deeplabv2",
        _of("19", ("plain", 52.0, MFM), ("mfm", 55.1, MFM)), {"network.encoder": "resnet50"},
    ),
    "gta-dacs-v3plus": Row(
        "gta", "cityscapes", "DACS", "DeepLabV3+, ResNet-101", "gta2cityscapes_dacs_deeplabv2",
        _of("19", ("plain", 54.7, MFM), ("mfm", 59.3, MFM)), {"network.name": "deeplabv3plus"},
    ),
    "gta-daformer-r101": Row(
        "gta", "cityscapes", "DAFormer", DLV2, "gta2cityscapes_daformer",
        _of("19", ("plain", 56.0, DIDA), ("dida", 58.3, DIDA)),
        {**R101, "recipe.advanced.dida.noise_weight": 1.0},
    ),
    "gta-hrda-r101": Row(
        "gta", "cityscapes", "HRDA", DLV2, "gta2cityscapes_hrda",
        _of("19", ("plain", 63.0, DIDA), ("dida", 64.3, DIDA)),
        {**R101, "recipe.advanced.dida.noise_weight": 1.0},
    ),
    "gta-mic-r101": Row(
        "gta", "cityscapes", "MIC (HRDA)", DLV2, "gta2cityscapes_hrda",
        _of("19", ("plain", 64.2, MFM), ("mfm", 67.1, MFM), ("dida", 65.0, DIDA)),
        {**R101, **MIC_ON_HRDA, "recipe.advanced.dida.noise_weight": 1.0},
    ),
    "gta-daformer-b2": Row(
        "gta", "cityscapes", "DAFormer", "DAFormer, MiT-B2", "gta2cityscapes_daformer",
        _of("19", ("plain", 64.2, MFM), ("mfm", 66.3, MFM)), {"network.encoder": "mit_b2"},
    ),
    "gta-mic-b3": Row(
        "gta", "cityscapes", "MIC (HRDA)", "DAFormer, MiT-B3", "gta2cityscapes_hrda",
        _of("19", ("plain", 73.6, MFM), ("mfm", 75.8, MFM)), {**MIC_ON_HRDA, "network.encoder": "mit_b3"},
        note="the notes on the paper do not say whether MIC runs on HRDA here",
    ),
    "synthia-dacs": Row(
        "synthia", "cityscapes", "DACS", DLV2, "gta2cityscapes_dacs_deeplabv2",
        _of("16", ("plain", 48.3, "2007.08702"), ("mfm", 55.8, MFM)) + _of("13", ("plain", None, "")),
        note="48.3 is DACS's own code; in the DAFormer framework it reaches more",
    ),
    "synthia-daformer": Row(
        "synthia", "cityscapes", "DAFormer", MIT, "gta2cityscapes_daformer",
        _of("16", ("plain", 60.9, "2111.14887"), ("mfm", 62.6, MFM), ("dida", 63.1, DIDA))
        + _of("13", ("plain", 67.4, "2507.12008")),
    ),
    "synthia-hrda": Row(
        "synthia", "cityscapes", "HRDA", MIT, "gta2cityscapes_hrda",
        _of("16", ("plain", 65.8, "2204.13132"), ("mfm", 67.1, MFM), ("dida", 67.8, DIDA))
        + _of("13", ("plain", 72.4, "2507.12008")),
    ),
    "synthia-mic": Row(
        "synthia", "cityscapes", "MIC (HRDA)", MIT, "gta2cityscapes_hrda",
        _of("16", ("plain", 67.3, "2212.01322"), ("mfm", 68.1, MFM), ("dida", 68.6, DIDA))
        + _of("13", ("plain", 74.0, "2507.12008")),
        MIC_ON_HRDA,
    ),
    "acdc-dacs": Row(
        "cityscapes", "acdc", "DACS", DLV2, "gta2cityscapes_dacs_deeplabv2",
        _of("19", ("plain", None, ""), ("mfm", None, "")), TO_ACDC, TEST_SPLIT,
    ),
    "acdc-daformer": Row(
        "cityscapes", "acdc", "DAFormer", MIT, "gta2cityscapes_daformer",
        _of("19", ("plain", 55.4, "2111.14887"), ("mfm", None, ""), ("dida", 59.1, DIDA)), TO_ACDC, TEST_SPLIT,
    ),
    "acdc-hrda": Row(
        "cityscapes", "acdc", "HRDA", MIT, "gta2cityscapes_hrda",
        _of("19", ("plain", 68.0, "2204.13132"), ("mfm", None, ""), ("dida", 70.7, DIDA)), TO_ACDC_HIGH, TEST_SPLIT,
    ),
    "acdc-mic": Row(
        "cityscapes", "acdc", "MIC (HRDA)", MIT, "gta2cityscapes_hrda",
        _of("19", ("plain", 69.8, "2412.10339"), ("mfm", None, ""), ("dida", 72.1, DIDA)),
        {**TO_ACDC_HIGH, **MIC_ON_HRDA},
        f"{TEST_SPLIT}; the paper does not jitter the masked image here",
    ),
    "refuge-dacs": Row(
        "refuge", "refuge", "DACS", DLV2, "gta2cityscapes_dacs_deeplabv2",
        _of("disc, cup", ("plain", None, ""), ("mfm", None, "")), {"buffer.width": 512},
        "MFM-DA (2503.00802) uses these data with ten target images and another network; its figures were not found",
    ),
}  # fmt: skip
"""By key. Two means over classes of one run are two lines of the table, not two runs."""
