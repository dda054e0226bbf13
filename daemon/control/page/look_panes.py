"""What the view Look shows of each version: its labels, the classes in them, and where it disagrees with another."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from daemon.control.page.look_pictures import Palette, colors_of, difference_address, mask_address
from daemon.looks.pictures import disagreement, labels_of, shares
from storage.buffer.catalog_records import FrameRecord
from storage.looks.store import Look, NoLook
from storage.registry.manifest import Manifest

LEAST_SHARE = 0.0001
"""A class with a smaller share of the pixels in each version is not in the table."""


class Seen(NamedTuple):
    """A version and its answer."""

    version: int
    manifest: Manifest | NoLook
    answer: bytes | NoLook
    """The labels of the frame as a grey PNG."""


class Difference(NamedTuple):
    """Where a version disagrees with the reference."""

    address: str
    """Address of the map."""
    share: float
    """Share of the pixels on which they disagree (0-1)."""


@dataclass(frozen=True, slots=True)
class Pane:
    """One version's look at the frame."""

    version: int
    mask: str = ""
    """Address of the coloured labels; empty while there are none."""
    problem: NoLook | None = None
    """Why there are none."""
    shares: tuple[float, ...] = ()
    """Share of the pixels of each class (0-1)."""
    difference: Difference | None = None
    """None for the reference, and while one of the two has no labels or they have other classes."""
    other_classes: bool = False
    """Whether its class list differs from the reference's."""


class ClassRow(NamedTuple):
    """One class of the legend."""

    name: str
    color: str
    """`#rrggbb`."""
    shares: list[float | None]
    """Of each pane (0-1); None while it has no labels."""


def make_panes(record: FrameRecord, seen: Sequence[Seen], palette: Palette, reference: int) -> list[Pane]:
    """Return a pane for each version; the one at the place `reference` is what the others are compared with."""
    first = seen[reference] if seen else None
    return [_pane(record, item, None if item is first else first, palette) for item in seen]


def _pane(record: FrameRecord, seen: Seen, first: Seen | None, palette: Palette) -> Pane:
    if isinstance(seen.manifest, NoLook):
        return Pane(seen.version, problem=seen.manifest)
    if isinstance(seen.answer, NoLook):
        return Pane(seen.version, problem=seen.answer)
    labels, look, difference, differs = labels_of(seen.answer), Look.of(record, seen.manifest), None, False
    if first is not None and isinstance(first.manifest, Manifest):
        differs = names_of(first.manifest) != names_of(seen.manifest)
        if not differs and isinstance(first.answer, bytes):
            address = difference_address(Look.of(record, first.manifest), look)
            difference = Difference(address, disagreement(labels_of(first.answer), labels))
    found = tuple(shares(labels, len(seen.manifest.classes)))
    return Pane(seen.version, mask_address(look, palette), None, found, difference, differs)


def names_of(manifest: Manifest) -> list[str]:
    """Return the names of the classes of a version."""
    return [entry["name"] for entry in manifest.classes]


def legend(seen: Sequence[Seen], panes: Sequence[Pane], palette: Palette, reference: int) -> list[ClassRow]:
    """Return the classes of the reference that any version sees in the frame; before that, all of them."""
    manifest = seen[reference].manifest if seen else None
    if not isinstance(manifest, Manifest):
        return []
    rows = []
    for index, (name, color) in enumerate(zip(names_of(manifest), colors_of(manifest, palette), strict=True)):
        known = [pane.shares and not pane.other_classes for pane in panes]
        found = [pane.shares[index] if known[place] else None for place, pane in enumerate(panes)]
        if not any(known) or max(share or 0.0 for share in found) >= LEAST_SHARE:
            rows.append(ClassRow(name, "#" + bytes(color).hex(), found))
    return rows
