"""Scores of thin structures: IoU and Dice of the vessel class, and the share of its centreline that a mask finds."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

VESSEL = 1
"""Place of the vessel class."""
Mask = NDArray[np.uint8]
Truths = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class VesselScore:
    """How well masks show the vessels of some images (0-1 each)."""

    iou: float
    """IoU of the pixels of all images together."""
    dice: float
    """Mean of the images' Dice, 2 tp / (2 tp + fp + fn)."""
    pooled_dice: float
    """Dice of the pixels of all images together."""
    centreline: float
    """Mean over images of the share of the truth's centreline that lies in the mask ("topology sensitivity" of clDice,
    Shit et al., CVPR 2021): thick vessels weigh no more than thin ones."""


@dataclass(frozen=True, slots=True)
class Truth:
    """The labelled vessels of one image."""

    vessels: Truths
    """[H, W]; some pixel is set."""
    centreline: Truths

    @classmethod
    def of(cls, label: Mask) -> Self:
        """Thin the vessels of a label [H, W] once, for all masks that are scored against it."""
        return cls(label == VESSEL, centreline(label == VESSEL))


def vessel_score(masks: Sequence[Mask], truths: Sequence[Truth]) -> VesselScore:
    """Score class masks [H, W] against truths of the same sizes."""
    counts, found = np.zeros((len(masks), 3)), np.zeros(len(masks))  # rows: tp, fp, fn of an image
    for number, (mask, truth) in enumerate(zip(masks, truths, strict=True)):
        predicted, true = mask == VESSEL, truth.vessels
        counts[number] = (predicted & true).sum(), (predicted & ~true).sum(), (~predicted & true).sum()
        found[number] = predicted[truth.centreline].mean()
    tp, wrong = counts[:, 0], counts[:, 1:].sum(axis=1)
    return VesselScore(
        iou=float(tp.sum() / (tp.sum() + wrong.sum())),
        dice=float((2 * tp / (2 * tp + wrong)).mean()),
        pooled_dice=float(2 * tp.sum() / (2 * tp.sum() + wrong.sum())),
        centreline=float(found.mean()),
    )


def mean_score(scores: Iterable[VesselScore]) -> VesselScore:
    """Return the mean of each score."""
    rows = [asdict(score) for score in scores]
    return VesselScore(**{name: float(np.mean([row[name] for row in rows])) for name in rows[0]})


def centreline(mask: Truths) -> Truths:
    """Thin the set pixels of `mask` [H, W] to lines that keep their ends and connections.

    Zhang and Suen, "A fast parallel algorithm for thinning digital patterns" (CACM 1984). As published, it leaves
    nothing of a lone square of 2x2 pixels, and little of a long diagonal two pixels wide. Every piece of the vessels of
    DRIVE and STARE keeps its line.
    """
    thin, removed = np.pad(mask, 1), True
    while removed:
        removed = False
        for even in (True, False):
            places = _removable(thin, even)
            thin[places] = False
            removed |= places[0].size > 0
    return thin[1:-1, 1:-1]


def _removable(padded: Truths, even: bool) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return the pixels that one half of a pass removes: borders whose removal cuts nothing."""
    rows, columns = np.nonzero(padded)
    # neighbours P2 to P9 of the paper: north, then clockwise
    steps = ((-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1), (-1, -1))
    ring = np.stack([padded[rows + down, columns + right] for down, right in steps])
    count = ring.sum(axis=0)
    crossings = (~ring & np.roll(ring, -1, axis=0)).sum(axis=0)
    north, east, south, west = ring[0], ring[2], ring[4], ring[6]
    if even:
        open_sides = ~(north & east & south) & ~(east & south & west)
    else:
        open_sides = ~(north & east & west) & ~(north & south & west)
    chosen = (count >= 2) & (count <= 6) & (crossings == 1) & open_sides
    return rows[chosen], columns[chosen]
