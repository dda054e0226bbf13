"""Write frames with pre-filled masks into a folder, in the forms that CVAT, Label Studio and PNG editors open."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from configs.settings import Settings
from storage import durable
from storage.canary.drawing import index_png, png_bytes, write_cvat
from storage.canary.label_studio import write_label_studio
from storage.canary.records import Suggested
from storage.durable.record import read_record
from storage.errors import CanaryRefused
from storage.layout import StateLayout
from storage.media.images import crc32_of


def write_suggestions(
    settings: Settings,
    layout: StateLayout,
    folder: Path,
    frames: Iterable[tuple[int, NDArray[np.uint8], NDArray[np.uint8]]],
) -> list[str]:
    """Write `images`, `masks`, `cvat.zip`, `label-studio.json` and `.xml` into a new or empty folder; return the names.

    `frames`: id, pixels [h, w, 3] and classes [h, w]. Masks are remembered, so that `add_canary` knows unchanged ones.
    Raises CanaryRefused for a folder that holds something.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise CanaryRefused(f"{folder}: not an empty folder; nothing is overwritten, name another one")
    for name in ("images", "masks"):
        durable.make_directory(folder / name, shared=True)
    masks, known = dict[str, NDArray[np.uint8]](), dict[int, int]()
    for number, pixels, classes in frames:
        name = f"frame_{number:06d}"
        durable.write_bytes(folder / "images" / f"{name}.png", png_bytes(Image.fromarray(pixels)), shared=True)
        durable.write_bytes(folder / "masks" / f"{name}.png", index_png(classes, settings.classes), shared=True)
        masks[name], known[crc32_of(pixels)] = classes, crc32_of(classes)
    write_cvat(folder / "cvat.zip", masks, settings.classes)
    write_label_studio(folder, {f"{name}.png": mask for name, mask in masks.items()}, settings.classes)
    durable.make_directory(layout.canary)
    with durable.exclusive_lock(layout.canary / ".lock"):
        path = layout.canary / "suggested.json"
        before = read_record(path, Suggested) or Suggested()
        durable.write_record(path, Suggested(masks=before.masks | known))
    return list(masks)
