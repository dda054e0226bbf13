"""The shifts: repeatable, nothing at severity 0, each in the direction that its physics says."""

import numpy as np
import pytest
from shifts import HORIZON, fog, night, rain, sensor_noise, sequence

ALL = [fog, rain, night, sensor_noise]


@pytest.fixture
def image() -> np.ndarray:
    return np.random.default_rng(0).integers(30, 220, (36, 48, 3), dtype=np.uint8)


@pytest.mark.parametrize("shift", ALL)
def test_same_frame_same_bytes_other_frame_other_bytes(shift, image) -> None:
    assert np.array_equal(shift(image, 5), shift(image, 5))
    assert not np.array_equal(shift(image, 5), shift(image, 6))
    assert shift(image, 5).dtype == np.uint8 and shift(image, 5).shape == image.shape


@pytest.mark.parametrize("shift", ALL)
def test_severity_0_is_the_image_and_more_is_further_away(shift, image) -> None:
    def distance(severity: float) -> float:
        return float(np.abs(shift(image, 1, severity).astype(int) - image.astype(int)).mean())

    assert distance(0.0) < 0.51  # rounding only
    assert distance(0.0) < distance(0.4) < distance(1.0)


@pytest.mark.parametrize("shift", ALL)
def test_the_image_given_is_left_alone(shift, image) -> None:
    before = image.copy()
    shift(image, 0)
    assert np.array_equal(image, before)


def test_fog_hides_what_is_far_and_keeps_what_is_near(image) -> None:
    foggy = fog(image, 0).astype(float)
    spread = foggy.std(axis=(1, 2))
    horizon = int(HORIZON * len(spread))
    assert spread[:horizon].max() < 0.3 * spread[-1]  # beyond the horizon next to nothing is left
    assert (np.diff(spread.reshape(6, 6).mean(axis=1)[2:]) > 0).all()  # and more with each step towards the camera


def test_rain_takes_contrast_and_saturation_and_adds_bright_streaks() -> None:
    scene = np.tile(np.array([[[200, 60, 60]], [[20, 60, 160]]], np.uint8), (18, 48, 1))
    wet = rain(scene, 0).astype(float)
    assert np.ptp(np.median(wet, axis=1), axis=0).mean() < np.ptp(scene.astype(float), axis=0).mean()
    assert np.ptp(np.median(wet, axis=(0, 1))) < 80
    assert wet.max() > np.median(wet[0], axis=0).max() + 40


def test_night_is_darker_and_bluer_and_darkness_stays_dark(image) -> None:
    dark = night(image, 0).astype(float)
    assert dark.mean() < 0.45 * image.mean()
    assert dark[..., 2].mean() > dark[..., 0].mean()
    assert night(np.zeros((8, 8, 3), np.uint8), 0).mean() < 60


def test_shot_noise_grows_with_the_light_and_the_mean_stays() -> None:
    grey = np.full((64, 64, 3), 120, np.uint8)
    linear = (sensor_noise(grey, 0) / 255.0) ** 2.2
    assert abs(linear.mean() - (120 / 255) ** 2.2) < 0.02
    weaker = (sensor_noise(np.full((64, 64, 3), 200, np.uint8), 0, 0.3) / 255.0) ** 2.2
    weakest = (sensor_noise(np.full((64, 64, 3), 40, np.uint8), 0, 0.3) / 255.0) ** 2.2
    assert weaker.std() > weakest.std()


def test_the_sequence_leaves_day_and_comes_back(image) -> None:
    stages = sequence(0.8)
    assert [name for name, _ in stages] == ["day", "fog", "rain", "night", "sensor noise", "day again"]
    assert np.array_equal(stages[0][1](image, 0), image) and np.array_equal(stages[-1][1](image, 0), image)
    assert np.array_equal(stages[3][1](image, 2), night(image, 2, 0.8))
