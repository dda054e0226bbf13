"""What a row of a published table is: source, target, network, recipe, and the published figures.

The figures come from the papers' own read-me files and from notes on the papers (docs/explanation/sources.md): the full
texts were not available. `None` is a row of which no figure was found.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

STEPS = 40_000
"""Steps of a published run of the DAFormer framework and of VFM-UDA."""
ARMS: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("", {"mfm.enabled": False}),
    "mfm": (" + MFM", {"mfm.enabled": True}),
    "dida": (" + DiDA", {"mfm.enabled": False, "recipe.advanced.dida.enabled": True}),
    "blda": (" + BLDA", {"mfm.enabled": False, "recipe.advanced.blda.enabled": True}),
    "complementary": (
        " + complementary masks", {"mfm.enabled": False, "recipe.advanced.complementary.enabled": True}
    ),
}  # fmt: skip
"""What is added to a recipe: title and settings."""
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
    steps: int = STEPS
    """Steps of self-training."""
    tiny: Mapping[str, Any] = field(default_factory=dict)
    """Settings for a trial with tiny networks, by dotted name."""

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


def of(classes: str, *figures: tuple[str, float | None, str]) -> tuple[Published, ...]:
    """Return figures of one mean, each an arm, its mIoU and the paper."""
    return tuple(Published(arm, classes, miou, paper) for arm, miou, paper in figures)
