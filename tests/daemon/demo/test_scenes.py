import hashlib

import numpy as np
import pytest

from configs.class_list import load_class_list
from daemon.demo.conditions import DAY, DUSK, Condition
from daemon.demo.drawing.air import photograph
from daemon.demo.drawing.camera import Camera
from daemon.demo.drawing.canvas import Canvas
from daemon.demo.drawing.labels import Label
from daemon.demo.scenes import HEIGHT, WIDTH, Scene, draw_scene

CAMERA = Camera(height=90, width=120, focal=100.0, center_x=60.0, horizon=40.0, eye=1.5)


@pytest.fixture(scope="module", params=[DAY, DUSK], ids=["day", "dusk"])
def scenes(request: pytest.FixtureRequest) -> list[Scene]:
    return [draw_scene(request.param, seed) for seed in range(8)]


def test_labels_are_in_the_order_of_the_class_list() -> None:
    assert [label.name.lower() for label in Label] == [entry["name"] for entry in load_class_list("demo")]


@pytest.mark.parametrize("condition", [DAY, DUSK])
def test_a_seed_gives_the_same_pixels_again(condition: Condition) -> None:
    first, again, other = draw_scene(condition, 7), draw_scene(condition, 7), draw_scene(condition, 8)
    np.testing.assert_array_equal(first.image, again.image)
    np.testing.assert_array_equal(first.label, again.label)
    assert (first.label != other.label).any()


def test_conditions_never_share_a_street() -> None:
    assert (draw_scene(DAY, 3).label != draw_scene(DUSK, 3).label).any()


def test_every_scene_has_an_image_and_a_label_of_the_same_size(scenes: list[Scene]) -> None:
    for scene in scenes:
        assert scene.image.shape == (HEIGHT, WIDTH, 3)
        assert scene.image.dtype == scene.label.dtype == np.uint8
        assert scene.label.shape == (HEIGHT, WIDTH)
        assert scene.label.max() < len(Label)


def test_every_class_has_pixels_to_learn_from(scenes: list[Scene]) -> None:
    counts = sum(np.bincount(scene.label.ravel(), minlength=len(Label)) for scene in scenes)
    shares = counts / counts.sum()
    assert shares.min() > 0.003, dict(zip(Label, shares, strict=True))
    assert shares.max() < 0.5


def test_streets_are_where_streets_are(scenes: list[Scene]) -> None:
    for scene in scenes:
        bottom, top = scene.label[-4:], scene.label[: HEIGHT // 3]
        assert set(np.unique(bottom)) <= {Label.ROAD, Label.PAVEMENT, Label.CAR, Label.PERSON, Label.POLE, Label.TREE}
        assert not np.isin(top, (Label.ROAD, Label.PAVEMENT)).any()
        assert not (scene.label[int(HEIGHT * 0.52) :] == Label.SKY).any()


def test_scenes_of_other_sizes_can_be_drawn() -> None:
    assert draw_scene(DAY, 0, 48, 64).image.shape == (48, 64, 3)


def test_dusk_is_darker_bluer_and_noisier_than_day() -> None:
    day = np.stack([draw_scene(DAY, seed).image for seed in range(8)]).astype(float)
    dusk = np.stack([draw_scene(DUSK, seed).image for seed in range(8)]).astype(float)
    assert dusk.mean() < 0.75 * day.mean()
    road = (slice(None), slice(HEIGHT - 20, HEIGHT), slice(60, 130))
    blueness = [(images[road][..., 2] - images[road][..., 0]).mean() for images in (day, dusk)]
    assert blueness[1] > blueness[0] + 3


def test_the_nearer_thing_stays_whatever_is_painted_first() -> None:
    square = [(-1.0, 0.0, 8.0), (1.0, 0.0, 8.0), (1.0, 2.0, 8.0), (-1.0, 2.0, 8.0)]
    far = [(x * 2, y, 16.0) for x, y, _ in square]
    drawings = []
    for order in ((square, far), (far, square)):
        canvas = Canvas(CAMERA)
        for corners in order:
            label = Label.CAR if corners is square else Label.BUILDING
            canvas.solid(corners, (1, 0, 0), corners[0][2], label)
        drawings.append(canvas.label)
    np.testing.assert_array_equal(*drawings)
    assert (drawings[0] == Label.CAR).any()


def test_a_label_covers_exactly_the_pixels_that_the_thing_covers() -> None:
    canvas = Canvas(CAMERA)
    canvas.solid([(-1.0, 0.0, 10.0), (1.0, 0.0, 10.0), (1.0, 2.0, 10.0), (-1.0, 2.0, 10.0)], (1, 0, 0), 10.0, Label.CAR)
    rows, columns = np.nonzero(canvas.label == Label.CAR)
    # 2 m at 10 m and focal length 100 are 20 pixels: columns 50-70; 0 m is row 55, 2 m is row 35.
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (35, 55, 50, 70)
    assert len(rows) == 21 * 21
    np.testing.assert_array_equal(canvas.color[..., 0] == 1, canvas.label == Label.CAR)


def test_fog_grows_with_distance() -> None:
    haze = np.array(DUSK.weather.haze) * 255
    distances = []
    for depth in (5.0, 40.0, 160.0):
        canvas = Canvas(CAMERA)
        canvas.depth[:], canvas.label[:], canvas.color[:] = depth, Label.BUILDING, (0.9, 0.1, 0.1)
        picture = photograph(canvas, DUSK.weather, 3, np.random.default_rng(0))
        distances.append(np.abs(picture.mean(axis=(0, 1)) - haze).sum())
    assert distances[0] > distances[1] > distances[2]


def test_only_dusk_has_its_lights_on() -> None:
    assert not DAY.weather.lamps
    canvas = Canvas(CAMERA)
    canvas.depth[:], canvas.label[:] = 10.0, Label.BUILDING
    dark = photograph(canvas, DUSK.weather, 3, np.random.default_rng(0))
    canvas.light[30:60, 40:80] = (1.0, 0.8, 0.4)
    lit = photograph(canvas, DUSK.weather, 3, np.random.default_rng(0))
    assert lit[12:18, 16:24].mean() > dark[12:18, 16:24].mean() + 60


def test_seeds_do_not_repeat_images() -> None:
    digests = {hashlib.sha256(draw_scene(DUSK, seed, 48, 64).image.tobytes()).digest() for seed in range(20)}
    assert len(digests) == 20
