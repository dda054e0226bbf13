"""Masks for Label Studio: tasks with brush predictions, and its JSON export back as classes.

A brush mask is a run-length code of RGBA pixels in row order: 32 bits number of values, 5 bits word size - 1, four
times 4 bits size - 1 of run lengths; then per run one bit (1: one value repeated, 0: single values), 2 bits which of
the four sizes, the length - 1, and the value or values. Label Studio's brush tool writes this code. The alpha values
are the mask.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote
from xml.sax.saxutils import quoteattr

import numpy as np
from numpy.typing import NDArray

from configs.class_list import ClassInfo
from storage.canary.drawing import class_colors
from storage.canary.images import IGNORED

FROM, TO = "label", "image"
"""Names of the tags of the labelling configuration."""
WORD, LENGTH = 8, 16
"""Bits of a value, and of a run length, of masks written here."""
UPLOAD = re.compile(r"^[0-9a-f]{8}-")
"""What Label Studio puts before the name of an uploaded file."""


def encode_mask(mask: NDArray[np.bool_]) -> list[int]:
    """Return the run-length code of a mask [h, w] as bytes."""
    flat = np.repeat(mask.reshape(-1), 4)
    edges = np.flatnonzero(np.diff(flat)) + 1
    starts = np.union1d(np.concatenate([[0], edges]), np.arange(0, flat.size, 2**LENGTH)).astype(np.int64)
    lengths = np.diff(np.append(starts, flat.size))
    runs = (1 << 2 | 3) << LENGTH | (lengths - 1)
    runs = runs << WORD | np.where(flat[starts], 255, 0)
    width = 3 + LENGTH + WORD
    bits = (runs[:, None] >> np.arange(width)[::-1]) & 1
    head = f"{flat.size:032b}{WORD - 1:05b}" + f"{LENGTH - 1:04b}" * 4
    every = np.concatenate([np.frombuffer(head.encode(), np.uint8) - ord("0"), bits.reshape(-1).astype(np.uint8)])
    return np.packbits(every).tolist()


def decode_mask(code: Sequence[int], height: int, width: int) -> NDArray[np.bool_]:
    """Return the mask [h, w] of a run-length code. Raises ValueError when it is damaged or of another size."""
    bits, place = np.unpackbits(np.array(code, np.uint8)), 0

    def take(count: int) -> int:
        nonlocal place
        if place + count > bits.size:
            raise ValueError("the run-length code is cut off")
        place += count
        return int("".join(map(str, bits[place - count : place].tolist())), 2)

    number, word = take(32), take(5) + 1
    sizes = [take(4) + 1 for _ in range(4)]
    if number != 4 * height * width or word > 8:
        raise ValueError(f"the run-length code has {number} values; {width}x{height} pixels have {4 * height * width}")
    values, done = np.zeros(number, np.uint8), 0
    while done < number:
        repeats, length = take(1), take(sizes[take(2)]) + 1
        if done + length > number:
            raise ValueError("the run-length code is longer than the image")
        if repeats:
            values[done : done + length] = take(word)
        else:
            values[done : done + length] = [take(word) for _ in range(length)]
        done += length
    return values.reshape(height, width, 4)[:, :, 3] > 0


def write_label_studio(folder: Path, masks: Mapping[str, NDArray[np.uint8]], classes: Sequence[ClassInfo]) -> None:
    """Write `label-studio.xml`, the labelling configuration, and `label-studio.json`, tasks with brush predictions.

    `masks` by name of the image file. Images are read by Label Studio as local files below the folder it serves.
    """
    image = f'  <Image name="{TO}" value="$image" zoom="true"/>'
    lines = ["<View>", image, f'  <BrushLabels name="{FROM}" toName="{TO}">']
    for entry, color in zip(classes, class_colors(classes), strict=False):
        background = "#" + bytes(color.tolist()).hex()
        lines.append(f'    <Label value={quoteattr(entry.name)} background="{background}"/>')
    (folder / "label-studio.xml").write_text("\n".join([*lines, "  </BrushLabels>", "</View>", ""]), "utf-8")
    tasks = [
        {
            "data": {"image": f"/data/local-files/?d=images/{name}"},
            "predictions": [{"model_version": "mfmd", "result": list(_results(mask, classes))}],
        }
        for name, mask in masks.items()
    ]
    (folder / "label-studio.json").write_text(json.dumps(tasks), "utf-8")


def _results(mask: NDArray[np.uint8], classes: Sequence[ClassInfo]) -> Iterator[dict[str, Any]]:
    height, width = mask.shape
    for index in np.unique(mask[mask != IGNORED]).tolist():
        name = classes[index].name
        value = {"format": "rle", "rle": encode_mask(mask == index), "brushlabels": [name]}
        size = {"original_width": width, "original_height": height, "image_rotation": 0}
        yield {"id": f"class{index}", "from_name": FROM, "to_name": TO, "type": "brushlabels", "value": value, **size}


def is_export(value: object) -> bool:
    """Return whether a JSON value is an export of tasks."""
    return isinstance(value, list) and all(isinstance(item, dict) and "data" in item for item in value)


def image_name(task: Mapping[str, Any]) -> str:
    """Return the name of a task's image file, without what Label Studio put before it; empty without one."""
    for value in task["data"].values() if isinstance(task["data"], dict) else ():
        if isinstance(value, str) and "." in value:
            return UPLOAD.sub("", re.split(r"[/\\=]", unquote(value))[-1])
    return ""


def task_classes(task: Mapping[str, Any], height: int, width: int, names: Sequence[str]) -> NDArray[np.uint8] | None:
    """Return what the newest annotation of a task says [h, w]: class indices, `IGNORED` where none or several are.

    None without an annotation. Raises ValueError for another size, a label that is no class, or a damaged mask.
    """
    kept = [item for item in task.get("annotations") or [] if not item.get("was_cancelled")]
    if not kept:
        return None
    results = max(kept, key=lambda item: str(item.get("updated_at", ""))).get("result", [])
    labels, twice = np.full((height, width), IGNORED, np.uint8), np.zeros((height, width), np.bool_)
    for result in results:
        if result.get("type") != "brushlabels":
            continue
        size = (result.get("original_height"), result.get("original_width"))
        if size != (height, width):
            raise ValueError(f"drawn on {size[1]}x{size[0]} pixels, the image has {width}x{height}")
        value = result.get("value", {})
        for name in value.get("brushlabels", []):
            if name not in names:
                raise ValueError(f"label {name!r} is no class; `classes` has {', '.join(names)}")
            mask = decode_mask(value.get("rle", []), height, width)
            twice |= mask & (labels != IGNORED) & (labels != names.index(name))
            labels[mask] = names.index(name)
    labels[twice] = IGNORED
    return labels
