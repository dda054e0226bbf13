"""Masks that a person draws on: class indices as a palette PNG, in CVAT's archive, and what was drawn back as classes.

CVAT's archive is that of its format "Segmentation mask 1.1": `labelmap.txt`, `ImageSets/Segmentation/default.txt` and
colour masks in `SegmentationClass` (docs.cvat.ai, format-smask).
"""

import io
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from configs.buffer import SourceSettings
from configs.class_list import ClassInfo
from storage.canary.images import IGNORED
from storage.errors import CanaryRefused
from storage.source.label_map import LabelMap

BACKGROUND = "background"
"""CVAT's name of what no label covers; its colour is black."""
SPARE_COLORS = ((224, 224, 192), (255, 0, 255), (1, 1, 1), (2, 2, 2))
"""Colours for pixels of no class, and for a class whose colour is taken; the first that is free."""


def class_colors(classes: Sequence[ClassInfo], *, taken: Iterable[tuple[int, int, int]] = ()) -> NDArray[np.uint8]:
    """Return a colour for each class and then one for pixels of no class [K + 1, 3], all different.

    They are those of the class list as far as these differ from each other and from `taken`.
    """
    used, colors = set(taken), list[tuple[int, int, int]]()
    spare = (color for color in (*SPARE_COLORS, *((n, 3, 255 - n) for n in range(256))))
    own = [(red, green, blue) for red, green, blue in (entry.color for entry in classes)]
    for color in (*own, None):
        free = color if color is not None and color not in used else next(c for c in spare if c not in {*used, *own})
        colors.append(free)
        used.add(free)
    return np.array(colors, np.uint8)


def index_png(labels: NDArray[np.uint8], classes: Sequence[ClassInfo]) -> bytes:
    """Return labels [h, w] (class indices, or `IGNORED`) as a palette PNG in the colours of `class_colors`."""
    palette, colors = np.zeros((256, 3), np.uint8), class_colors(classes)
    palette[: len(classes)], palette[IGNORED] = colors[:-1], colors[-1]
    image = Image.fromarray(labels, mode="P")
    image.putpalette(palette.tobytes())
    return png_bytes(image)


def png_bytes(image: Image.Image) -> bytes:
    """Return an image as the bytes of a PNG file."""
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def color_map(classes: Sequence[ClassInfo]) -> LabelMap:
    """Return the meaning of the colours of `index_png`."""
    return _by_color([entry.name for entry in classes], class_colors(classes))


def _by_color(names: Sequence[str], colors: NDArray[np.uint8]) -> LabelMap:
    indices = [*range(len(names)), IGNORED]
    known = {int.from_bytes(color.tobytes()): index for color, index in zip(colors, indices, strict=True)}
    return LabelMap("rgb", tuple(names), IGNORED, known, plain=False)


def write_cvat(path: Path, masks: Mapping[str, NDArray[np.uint8]], classes: Sequence[ClassInfo]) -> None:
    """Write masks [h, w] by image name (without ending) as an archive that CVAT imports as annotations.

    Pixels of no class are CVAT's background. Raises CanaryRefused for a class name that its format cannot hold.
    """
    black = (0, 0, 0)
    colors = class_colors(classes, taken=[black])
    lines = ["# label:color_rgb:parts:actions"]
    if not any(entry.name == BACKGROUND for entry in classes):
        lines.append(f"{BACKGROUND}:0,0,0::")
    for entry, color in zip(classes, colors, strict=False):
        if ":" in entry.name:
            raise CanaryRefused(f"class {entry.name!r}: a colon ends a name in CVAT's labelmap.txt; rename the class")
        lines.append(f"{entry.name}:{','.join(map(str, color.tolist()))}::")
    table = np.zeros((256, 3), np.uint8)
    table[: len(classes)] = colors[:-1]
    with zipfile.ZipFile(path, "x", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("labelmap.txt", "\n".join(lines) + "\n")
        archive.writestr("ImageSets/Segmentation/default.txt", "".join(f"{name}\n" for name in masks))
        for name, mask in masks.items():
            archive.writestr(f"SegmentationClass/{name}.png", png_bytes(Image.fromarray(table[mask])))


def cvat_map(path: Path, names: Sequence[str]) -> LabelMap:
    """Return what colours mean by CVAT's `labelmap.txt`; its background is no class unless a class has that name.

    Raises CanaryRefused for a label that is no class, and for a line or colour that means nothing.
    """
    known = dict[int, int]()
    for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        name, color, *_ = [*line.strip().split(":"), ""]
        parts = [int(part) for part in color.split(",") if part.strip().isdecimal()]
        if len(parts) != 3 or max(parts) > 255:
            raise CanaryRefused(f"{path}: line {number}: {color!r} is no colour (r,g,b)")
        if name not in names and name != BACKGROUND:
            raise CanaryRefused(
                f"{path}: line {number}: label {name!r} is no class; `classes` has {', '.join(names)}: "
                "export labels of this class list"
            )
        known[int.from_bytes(bytes(parts))] = names.index(name) if name in names else IGNORED
    known.setdefault(0, IGNORED)
    return LabelMap("rgb", tuple(names), IGNORED, known, plain=False)


def shared_map(settings_of_labels: SourceSettings | None, classes: Sequence[ClassInfo]) -> LabelMap:
    """Return the meaning of label values by the configuration, with `IGNORED` outside every class."""
    found = LabelMap.of(settings_of_labels, [(entry.name, entry.color) for entry in classes])
    values = {value: IGNORED if index == found.ignore_index else index for value, index in found.classes.items()}
    return LabelMap(found.format, found.names, IGNORED, values, found.plain)
