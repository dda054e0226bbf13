"""Drawn street scenes: the same again from a seed, exact labels, and a real gap between day and dusk."""

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from configs.class_list import load_class_list
from daemon.demo.conditions import DAY, DUSK, Condition
from daemon.demo.scenes import HEIGHT, WIDTH, Label, Scene, draw_scene, write_scene
from daemon.demo.story import draw_all

GROUND = (Label.ROAD, Label.PAVEMENT)


@pytest.fixture(scope="module")
def day() -> list[Scene]:
    return [draw_scene(DAY, seed) for seed in range(12)]


@pytest.fixture(scope="module")
def dusk() -> list[Scene]:
    return [draw_scene(DUSK, seed) for seed in range(12)]


@pytest.fixture(params=["day", "dusk"])
def scenes(request: pytest.FixtureRequest) -> list[Scene]:
    return request.getfixturevalue(request.param)


def test_labels_are_in_the_order_of_the_class_list() -> None:
    assert [label.name.lower() for label in Label] == [entry["name"] for entry in load_class_list("demo")]


@pytest.mark.parametrize("condition", [DAY, DUSK], ids=["day", "dusk"])
def test_a_seed_gives_the_same_pixels_again(condition: Condition) -> None:
    first, again, other = (draw_scene(condition, seed, 48, 64) for seed in (7, 7, 8))
    np.testing.assert_array_equal(first.image, again.image)
    np.testing.assert_array_equal(first.label, again.label)
    assert (first.label != other.label).any()
    assert first.image.shape == (48, 64, 3)


def test_seeds_and_conditions_do_not_repeat_images() -> None:
    scenes = [draw_scene(condition, seed, 48, 64) for condition in (DAY, DUSK) for seed in range(10)]
    assert len({hashlib.sha256(scene.label.tobytes()).digest() for scene in scenes}) == 20


def test_every_scene_has_an_image_and_a_label_of_the_same_size(scenes: list[Scene]) -> None:
    for scene in scenes:
        assert scene.image.shape == (HEIGHT, WIDTH, 3)
        assert scene.image.dtype == scene.label.dtype == np.uint8
        assert scene.label.shape == (HEIGHT, WIDTH)


def test_every_class_has_pixels_to_learn_from(scenes: list[Scene]) -> None:
    counts = sum(np.bincount(scene.label.ravel(), minlength=len(Label)) for scene in scenes)
    shares = counts / counts.sum()
    assert len(shares) == len(Label)
    assert shares.min() > 0.003, dict(zip(Label, shares, strict=True))
    assert shares.max() < 0.5


def test_streets_are_where_streets_are(scenes: list[Scene]) -> None:
    for scene in scenes:
        bottom, top = scene.label[-4:], scene.label[: HEIGHT // 3]
        assert np.isin(bottom, GROUND).mean() > 0.5
        assert not np.isin(bottom, (Label.SKY, Label.BUILDING)).any()
        assert not np.isin(top, GROUND).any()
        assert not (scene.label[int(HEIGHT * 0.52) :] == Label.SKY).any()


def test_dusk_is_darker_bluer_and_noisier_than_day(day: list[Scene], dusk: list[Scene]) -> None:
    light, dark = (np.stack([scene.image for scene in scenes]).astype(float) for scenes in (day, dusk))
    assert dark.mean() < 0.75 * light.mean()
    road = (slice(None), slice(HEIGHT - 20, HEIGHT), slice(60, 130))
    blueness = [(images[road][..., 2] - images[road][..., 0]).mean() for images in (light, dark)]
    assert blueness[1] > blueness[0] + 3


def test_fog_grows_with_distance() -> None:
    clear = draw_scene(replace(DUSK, visibility=(1e6, 1e6)), 0)
    change = np.abs(draw_scene(DUSK, 0).image.astype(float) - clear.image).mean(axis=2)
    rows = np.nonzero(clear.label == Label.ROAD)[0]
    far, near = rows.min(), rows.max()
    road = [change[row][clear.label[row] == Label.ROAD].mean() for row in (far + 8, (far + near) // 2, near)]
    assert road[0] > 1.5 * road[1] > 1.5 * road[2]


def test_lamps_shine() -> None:
    assert (DAY.lamps, DUSK.lamps) == (False, True)
    dark, lit = (draw_scene(replace(DUSK, lamps=lamps), 0) for lamps in (False, True))
    np.testing.assert_array_equal(dark.label, lit.label)
    more = lit.image.astype(float).mean(axis=2) - dark.image.astype(float).mean(axis=2)
    assert more.max() > 80
    assert (more > 20).mean() > 0.005
    assert more.min() >= 0


def test_scenes_are_written_with_labels_only_where_asked(tmp_path: Path) -> None:
    for seed in range(2):
        write_scene(tmp_path / "source", DAY, seed, True, 48, 64)
        write_scene(tmp_path / "camera", DUSK, seed, False, 48, 64)
    written = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.png"))
    assert written == [
        "camera/images/dusk_00000.png",
        "camera/images/dusk_00001.png",
        "source/images/day_00000.png",
        "source/images/day_00001.png",
        "source/labels/day_00000.png",
        "source/labels/day_00001.png",
    ]
    scene = draw_scene(DAY, 1, 48, 64)
    for kind, drawn in (("images", scene.image), ("labels", scene.label)):
        with Image.open(tmp_path / "source" / kind / "day_00001.png") as image:
            np.testing.assert_array_equal(np.asarray(image), drawn)


def test_all_cores_draw_and_the_pictures_come_in_order(tmp_path: Path) -> None:
    scenes = [(tmp_path, DAY, 1, True), (tmp_path, DUSK, 0, False)]
    paths = draw_all(scenes)
    assert [path.name for path in paths] == ["day_00001.png", "dusk_00000.png"]
