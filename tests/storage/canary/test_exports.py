"""The round trip of canary labels: suggested, drawn in each format, added, read again; and what is refused."""

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from configs.settings import Settings
from storage.canary.adding import counts_of
from storage.canary.images import IGNORED, import_canary
from storage.canary.label_studio import decode_mask, encode_mask
from storage.canary.suggesting import write_suggestions
from storage.errors import CanaryRefused
from tests.storage.canary.conftest import CLASSES, HEIGHT, WIDTH, World


def by_index(world: World) -> Path:
    """An editor that keeps the palette."""
    for name, mask in world.truth.items():
        path = world.folder / "masks" / f"{name}.png"
        with Image.open(path) as image:
            drawn = Image.fromarray(mask, "P")
            drawn.putpalette(image.getpalette())
        drawn.save(path)
    return world.folder


def by_colour(world: World) -> Path:
    """An editor that saves colours."""
    by_index(world)
    for path in (world.folder / "masks").iterdir():
        with Image.open(path) as image:
            colours = image.convert("RGB")
        colours.save(path)
    return world.folder


def by_another_palette(world: World) -> Path:
    """An editor that orders the palette anew: what a person sees counts, not the index."""
    by_colour(world)
    for path in (world.folder / "masks").iterdir():
        with Image.open(path) as image:
            fewer = image.quantize(8, method=Image.Quantize.FASTOCTREE)
        fewer.save(path)
    return world.folder


def by_cvat(world: World) -> Path:
    """An export with other colours than the import had, images among it."""
    with zipfile.ZipFile(world.folder / "cvat.zip") as archive:
        labels = [line.split(":")[0] for line in archive.read("labelmap.txt").decode().splitlines()[1:]]
        assert archive.read("ImageSets/Segmentation/default.txt").decode().split() == list(world.truth)
    assert labels == ["background", "sky", "road", "tree"]
    colours = {"background": (0, 0, 0), "sky": (9, 9, 250), "road": (1, 2, 3), "tree": (250, 50, 50)}
    table = np.zeros((256, 3), np.uint8)
    table[:3] = [colours[entry["name"]] for entry in CLASSES]
    export = world.folder.parent / "export.zip"
    with zipfile.ZipFile(export, "w") as archive:
        lines = [f"{name}:{','.join(map(str, colour))}::" for name, colour in colours.items()]
        archive.writestr("labelmap.txt", "# label:color_rgb:parts:actions\n" + "\n".join(lines) + "\n")
        for name, mask in world.truth.items():
            file = io.BytesIO()
            Image.fromarray(table[mask]).save(file, "PNG")
            archive.writestr(f"SegmentationClass/{name}.png", file.getvalue())
            archive.write(world.folder / "images" / f"{name}.png", f"JPEGImages/{name}.png")
    return export


def by_label_studio(world: World) -> Path:
    """A JSON export: predictions were corrected and submitted; files were uploaded, so names got a prefix."""
    tasks = json.loads((world.folder / "label-studio.json").read_text())
    for task, mask in zip(tasks, world.truth.values(), strict=True):
        name = task["data"]["image"].rpartition("/")[2]
        task["data"]["image"] = f"/data/upload/3/0a1b2c3d-{name}"
        results = task.pop("predictions")[0]["result"]
        for result in results:
            index = [entry["name"] for entry in CLASSES].index(result["value"]["brushlabels"][0])
            result["value"]["rle"] = encode_mask(mask == index)
        cancelled = {"was_cancelled": True, "updated_at": "2027", "result": []}
        task["annotations"] = [cancelled, {"was_cancelled": False, "updated_at": "2026", "result": results}]
    file = world.folder / "project-1.json"
    file.write_text(json.dumps(tasks))
    return file


WAYS = [by_index, by_colour, by_another_palette, by_cvat, by_label_studio]


@pytest.mark.parametrize("draw", WAYS)
def test_what_is_drawn_is_what_is_read(world: World, draw: Callable[[World], Path]) -> None:
    export = draw(world)
    done = world.add(export)
    assert (done.added, done.known, done.unchanged) == (list(world.truth), [], [])
    read = world.read()
    assert read.keys() == world.truth.keys()
    for name, mask in world.truth.items():
        np.testing.assert_array_equal(read[name], mask)
    counts = counts_of(world.settings, import_canary(world.settings, world.layout))
    assert counts.rows() == done.counts.rows() and ("255", "ignored", 3 * 4 * WIDTH) in counts.rows()
    again = world.add(export)
    assert (again.added, again.known) == ([], list(world.truth))


@pytest.mark.parametrize("way", ["masks", "cvat.zip", "label studio"])
def test_a_mask_that_nobody_changed_is_no_label(world: World, way: str) -> None:
    export, more = world.folder, dict[str, Any]()
    if way == "cvat.zip":
        export, more = world.folder / "cvat.zip", {"images": world.folder / "images"}
    elif way == "label studio":
        tasks = json.loads((world.folder / "label-studio.json").read_text())
        for task in tasks:
            task["annotations"] = task.pop("predictions")
        export = world.folder / "export.json"
        export.write_text(json.dumps(tasks))
    done = world.add(export, **more)
    assert (done.added, done.unchanged) == ([], list(world.truth)) and not world.read()
    assert world.add(export, unchanged=True, **more).added == list(world.truth)


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        ("size", r"masks/frame_000002\.png: 10x10 pixels, its image has 64x48; draw it again"),
        ("value", r"frame_000002\.png: label value 77 .* is no class"),
        ("colour", r"frame_000002\.png: is a RGB image"),
        ("no image", r"masks/frame_000002\.png: no image of this name; give it"),
        ("cut", r"frame_000002\.png: .*cut off"),
        ("empty", r"masks/frame_000002\.png: no pixel of any class is labelled"),
        ("no masks", r"no folder labels or masks or SegmentationClass"),
        ("no images", r"no image in a folder images or JPEGImages; name"),
        ("two images", r"masks/frame_000002\.png: several images of this name: .*02\.jpg, .*02\.png; keep one"),
        (
            "two masks",
            r"masks/frame_000002\.png: another image or label of this name is there, .*masks/frame_000002\.bmp",
        ),
        (
            "twin",
            r"masks/twin\.png: another image or label of this image is there, .*masks/frame_000002\.png; remove one",
        ),
        (
            "by task",
            r"task-12-annotation-34-by-ab@c\.de-label-road-0\.png: .* by task, not by image.*export .* as JSON",
        ),
        ("source", r"lies in source\.images"),
    ],
)
def test_one_bad_mask_adds_nothing_and_is_named(world: World, harm: str, reason: str) -> None:
    folder = by_index(world)
    mask = folder / "masks" / "frame_000002.png"
    if harm in ("size", "value", "empty"):
        values = np.full((10, 10) if harm == "size" else (HEIGHT, WIDTH), {"value": 77}.get(harm, 255), np.uint8)
        Image.fromarray(values).save(mask)
    elif harm == "colour":
        Image.new("RGB", (WIDTH, HEIGHT), (7, 7, 7)).save(mask)
    elif harm == "no image":
        (folder / "images" / mask.name).unlink()
    elif harm == "cut":
        mask.write_bytes(mask.read_bytes()[:-40])
    elif harm in ("no masks", "no images"):
        (folder / harm[3:]).rename(folder / "others")
    elif harm in ("two images", "two masks"):
        ending = "jpg" if harm == "two images" else "bmp"
        (folder / harm[4:] / f"frame_000002.{ending}").write_bytes(
            (folder / harm[4:] / "frame_000001.png").read_bytes()
        )
    elif harm == "twin":
        (folder / "images" / "twin.png").write_bytes((folder / "images" / mask.name).read_bytes())
        (folder / "masks" / "twin.png").write_bytes((folder / "masks" / "frame_000001.png").read_bytes())
    elif harm == "by task":  # so Label Studio names masks that it exports as PNG files
        mask.rename(folder / "masks" / "task-12-annotation-34-by-ab@c.de-label-road-0.png")
    else:
        used = {"images": folder, "labels": folder.parent / "else"}
        world.settings = Settings.model_validate(world.settings.model_dump() | {"source": used})
    with pytest.raises(CanaryRefused, match=reason):
        world.add(folder)
    assert not (world.layout.canary / "files").exists()


def _with_result(**changes: Any) -> Callable[[Any], Any]:
    """Change the first result of the second task."""

    def change(tasks: Any) -> Any:
        result = tasks[1]["annotations"][1]["result"][0]
        result["value"] |= changes.pop("value", {})
        result |= changes
        return tasks

    return change


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_with_result(value={"brushlabels": ["pole"]}), r"frame_000002\.png: label 'pole' is no class"),
        (_with_result(original_width=9), r"frame_000002\.png: drawn on 9x48 pixels, the image has 64x48"),
        (_with_result(value={"rle": [0] * 9}), r"frame_000002\.png: the run-length code"),
        (lambda tasks: [tasks[0], {**tasks[1], "annotations": []}], r"frame_000002\.png: not annotated"),
        (lambda tasks: [{**tasks[0], "data": {"image": "a.png"}}], r"a\.png: no image of this name"),
        (lambda tasks: {"tasks": tasks}, r"project-1\.json: no JSON export"),
        (lambda tasks: [{"image": "a.png", "label": []}], r"project-1\.json: .*with `data`\): choose JSON there"),
    ],
)
def test_a_bad_export_of_label_studio_adds_nothing(world: World, change: Callable[[Any], Any], reason: str) -> None:
    file = by_label_studio(world)
    file.write_text(json.dumps(change(json.loads(file.read_text()))))
    with pytest.raises(CanaryRefused, match=reason):
        world.add(file)
    assert not (world.layout.canary / "files").exists()


@pytest.mark.parametrize(
    ("file", "content", "reason"),
    [
        (
            "labelmap.txt",
            b"background:0,0,0::\npole:9,9,9::\n",
            r"line 2: label 'pole' is no class; `classes` has sky, ",
        ),
        ("labelmap.txt", b"sky:9,9::\n", r"line 1: '9,9' is no colour"),
        ("labelmap.txt", b"sky:9,9,9::\n", r"frame_000001\.png: label value .* is no class"),
        (None, b"text", r"export\.zip: no zip archive that can be read"),
        (
            "task-1-annotation-2-by-1-tag-sky-0.png",
            b"",
            r"export\.zip/task-1-annotation-2-by-1-tag-sky-0\.png: .*as JSON",
        ),
        ("SegmentationClass/frame_000001.png", b"", r"export\.zip/SegmentationClass/frame_000001\.png: empty"),
    ],
)
def test_a_bad_export_of_cvat_adds_nothing(world: World, file: str | None, content: bytes, reason: str) -> None:
    export = by_cvat(world)
    if file is None:
        export.write_bytes(content)
    else:
        with zipfile.ZipFile(export) as archive:
            files = {name: archive.read(name) for name in archive.namelist()}
        with zipfile.ZipFile(export, "w") as archive:
            for name, data in (files | {file: content}).items():
                archive.writestr(name, data)
    with pytest.raises(CanaryRefused, match=reason):
        world.add(export)
    assert not (world.layout.canary / "files").exists()
    for path, why in (("elsewhere", "no such folder or file"), ("label-studio.xml", "neither a folder nor a .zip or")):
        with pytest.raises(CanaryRefused, match=why):
            world.add(world.folder / path)


def test_what_is_there_stays(world: World) -> None:
    world.add(by_index(world))
    for mask in world.truth.values():
        mask[30:] = 2
    with pytest.raises(CanaryRefused, match=r"3 problems: .*masks/frame_000001\.png: another image or label of"):
        world.add(by_index(world))
    assert all((mask[30:] != 2).any() for mask in world.read().values())
    with pytest.raises(CanaryRefused, match="not an empty folder"):
        write_suggestions(world.settings, world.layout, world.folder, [])


def test_another_class_list_is_refused_and_named(world: World) -> None:
    world.add(by_index(world))
    values = world.settings.model_dump()
    values["classes"] = [CLASSES[1], CLASSES[0], CLASSES[2]]
    other = Settings.model_validate(values)
    with pytest.raises(CanaryRefused, match=r"index the classes sky, road, tree; `classes` has road, sky, tree"):
        import_canary(other, world.layout)


def test_pixels_of_two_labels_in_label_studio_are_ignored(world: World) -> None:
    file = by_label_studio(world)
    tasks = json.loads(file.read_text())
    everywhere = encode_mask(np.ones((HEIGHT, WIDTH), np.bool_))
    result = tasks[0]["annotations"][1]["result"]
    (road,) = [item for item in result if item["value"]["brushlabels"] == ["road"]]
    road["value"]["rle"] = everywhere
    file.write_text(json.dumps(tasks[:1]))
    world.add(file)
    truth = world.truth["frame_000001"]
    wanted = np.where((truth == 0) | (truth == 2), IGNORED, 1)
    np.testing.assert_array_equal(world.read()["frame_000001"], wanted)


def test_a_task_whose_image_may_be_one_of_two_is_refused(world: World) -> None:
    file, images = by_label_studio(world), world.folder / "images"
    (images / "other").mkdir()
    (images / "other" / "frame_000002.png").write_bytes((images / "frame_000001.png").read_bytes())
    with pytest.raises(CanaryRefused, match=r"frame_000002\.png: several images of this name: .*; keep one"):
        world.add(file)


def test_masks_are_those_of_label_studio() -> None:
    """The code was written by `mask2rle` of label-studio-sdk 2.1.2, which also writes single values."""
    mask = np.zeros((5, 7), np.bool_)
    mask[1:3, 2:6], mask[4, 0] = True, True
    code = [0, 0, 0, 140, 57, 27, 254, 35, 0, 191, 255, 108, 2, 255, 254, 31, 0, 143, 255, 11, 128, 0]
    np.testing.assert_array_equal(decode_mask(code, 5, 7), mask)
    large = np.zeros((300, 400), np.bool_)  # runs longer than their largest length
    large[:200], large[250, ::9] = True, True
    np.testing.assert_array_equal(decode_mask(encode_mask(large), 300, 400), large)
    for damaged in (code[:-4], [255] * 40, []):
        with pytest.raises(ValueError, match="run-length code"):
            decode_mask(damaged, 5, 7)
