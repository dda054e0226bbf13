"""Rare-class sampling: the distribution of the paper, the images it draws from, and the crops it insists on."""

import itertools

import numpy as np
import pytest
import torch
from PIL import Image

import adapters.sampling.streams
from adapters.sampling.crops import SourceCrops
from adapters.sampling.margins import Region, choose_crop
from adapters.sampling.rare_class import RareClasses
from configs.recipe import DaformerAdvanced
from storage.source.labelled_import import import_labelled
from tests.sections import recipe_settings

AREA = 10_000
PIXELS = np.array([[7000, 2900, 100, 0], [9990, 0, 10, 0], [8000, 1985, 15, 0], [9900, 0, 100, 0]])
"""Four images of 100x100: classes 0 to 2 occur, class 3 never does."""
CHI_SQUARE_999 = {1: 10.83, 2: 13.82, 3: 16.27}
"""99.9 % points by degrees of freedom."""


def sampling(pixels: np.ndarray = PIXELS, **settings: float) -> RareClasses:
    values = {"temperature": 0.1, "image_share": 0.0015, "crop_share": 0.0057, **settings}
    return RareClasses(pixels, [AREA] * len(pixels), settings_of(**values))


def settings_of(**values: float) -> DaformerAdvanced:
    return DaformerAdvanced(**{f"rare_class_{name}": value for name, value in values.items()})


def chi_square(counts: list[int], probabilities: np.ndarray) -> float:
    expected = sum(counts) * np.asarray(probabilities)
    return float(((np.array(counts) - expected) ** 2 / expected).sum())


def test_probabilities_are_the_softmax_of_the_paper() -> None:
    frequency = torch.tensor([34890.0, 4885.0, 225.0]) / 40_000
    for temperature in (0.01, 0.1):
        rare = sampling(temperature=temperature)
        assert rare.classes == [0, 1, 2]
        expected = torch.softmax((1 - frequency) / temperature, 0)
        np.testing.assert_allclose(rare.probabilities, expected, rtol=1e-3)
        assert rare.probabilities.sum() == pytest.approx(1.0)


def test_classes_are_drawn_with_their_probability() -> None:
    """A seed that repeats; T is chosen so that each class is drawn often, and a wrong T is told apart."""
    generator, rare = np.random.default_rng(0), sampling(temperature=0.5)
    counts = np.bincount([rare.draw(generator)[0] for _ in range(20_000)], minlength=4)
    assert counts[3] == 0
    assert chi_square(counts[:3].tolist(), rare.probabilities) < CHI_SQUARE_999[2]
    for wrong in (0.4, 0.6):
        assert chi_square(counts[:3].tolist(), sampling(temperature=wrong).probabilities) > 5 * CHI_SQUARE_999[2]


def test_images_that_hold_enough_are_drawn_evenly() -> None:
    """15 of 10,000 pixels is not more than a share of 0.0015."""
    generator, rare = np.random.default_rng(1), sampling(temperature=1.0)
    drawn = [rare.draw(generator) for _ in range(12_000)]
    for wanted, holders in ((0, [0, 1, 2, 3]), (1, [0, 2]), (2, [0, 3])):
        counts = np.bincount([image for name, image in drawn if name == wanted], minlength=4)
        assert np.flatnonzero(counts).tolist() == holders
        even = np.full(len(holders), 1 / len(holders))
        assert chi_square(counts[holders].tolist(), even) < CHI_SQUARE_999[len(holders) - 1]


def test_class_too_rare_everywhere_is_drawn_from_the_images_with_most_of_it() -> None:
    pixels = np.array([[9990, 10], [9995, 5], [9996, 4], [10_000, 0]])
    rare = sampling(pixels)
    assert rare.images[1].tolist() == [0, 1]
    assert rare.classes == [0, 1] and rare.probabilities[1] > 0.99  # its probability is that of the paper


def test_share_is_of_each_image() -> None:
    pixels = np.array([[100, 20], [100, 20]])
    rare = RareClasses(pixels, [120, 120_000], settings_of(image_share=0.0015))
    assert [images.tolist() for images in rare.images] == [[0], [0]]


def test_one_class_is_always_drawn() -> None:
    rare = sampling(np.array([[50, 0], [0, 0], [50, 0]]))
    drawn = {rare.draw(np.random.default_rng(seed)) for seed in range(20)}
    assert rare.probabilities.tolist() == [1.0] and drawn == {(0, 0), (0, 2)}


def test_nothing_labelled_is_refused() -> None:
    with pytest.raises(ValueError, match="labelled pixels"):
        sampling(np.zeros((3, 2), np.int64))


def test_crop_must_exceed_its_share() -> None:
    labels = np.zeros((10, 10), np.uint8)
    labels[0] = 2
    assert sampling(crop_share=0.09).enough(labels, 2) and not sampling(crop_share=0.1).enough(labels, 2)


def test_preset_is_the_pixel_counts_of_the_original() -> None:
    recipe = recipe_settings(name="daformer")
    assert recipe.rare_class_sampling and recipe.advanced.rare_class_temperature == 0.01
    assert recipe.advanced.rare_class_image_share * 1914 * 1052 == pytest.approx(3000)
    assert (
        recipe.advanced.rare_class_crop_share * 512**2 == 1500
        and recipe.advanced.rare_class_crop_share * 1024**2 == 6000
    )


def count_draws(labels: np.ndarray, enough) -> int:
    counter = itertools.count()

    def draw():
        next(counter)
        return Region(0, 0, *labels.shape), labels

    choose_crop(draw, 255, enough)
    return next(counter)


def test_crops_are_drawn_again_at_most_ten_times() -> None:
    varied, uniform = np.array([[0, 1]], np.uint8), np.array([[0, 0]], np.uint8)
    assert count_draws(varied, None) == 1 and count_draws(uniform, None) == 11
    assert count_draws(varied, lambda labels: True) == 1 and count_draws(varied, lambda labels: False) == 11
    assert count_draws(uniform, lambda labels: False) == 11 * 11
    answers = iter([False, False, True])
    assert count_draws(varied, lambda labels: next(answers)) == 3


@pytest.fixture
def source(training_state):
    """Eight images of two classes in stripes; a third, in a corner, in the first one only."""
    training_state.draw_source(8)
    settings = training_state.settings()
    for number, path in enumerate(sorted(settings.source.labels.iterdir())):
        label = np.zeros((48, 64), np.uint8)
        label[:, ::2] = 1
        if number == 0:
            label[:24, :24] = 2
        Image.fromarray(label).save(path)
    return import_labelled(settings, training_state.layout)


def crops(source, *, crop: tuple[int, int] = (24, 24), count: int = 300, **recipe) -> np.ndarray:
    settings = recipe_settings("daformer", **{"rare_class_temperature": 0.5, **recipe})
    rare = RareClasses.from_settings(source, settings)
    stream = SourceCrops(source, source.train, crop=crop, batch_size=count, seed=(0,), rare=rare)
    return next(stream).labels.numpy()


def test_stream_shows_rare_classes_as_often_as_their_probability_says(source) -> None:
    """Whole images, so that every one that is drawn for class 2 shows it."""
    assert 0 in source.train
    shown = (crops(source, crop=(48, 64)) == 2).any(axis=(1, 2)).mean()
    plain = (crops(source, crop=(48, 64), rare_class_sampling=False) == 2).any(axis=(1, 2)).mean()
    assert plain == pytest.approx(1 / len(source.train), abs=0.01)
    rare = RareClasses.from_settings(source, recipe_settings(name="daformer", rare_class_temperature=0.5))
    others = sum(rare.probabilities[:2]) / len(source.train)
    assert shown == pytest.approx(rare.probabilities[2] + others, abs=0.09)  # three deviations of 300 draws
    assert rare.probabilities[2] > 2.5 * plain


def test_stream_draws_crops_again_until_they_hold_enough(source) -> None:
    """Nearly every crop is drawn for class 2 here; a share of 0 asks for one pixel of it, 0.1 for 58."""
    little, enough = (
        (crops(source, rare_class_temperature=0.01, rare_class_crop_share=share) == 2).mean(axis=(1, 2))
        for share in (0.0, 0.1)
    )
    assert (little > 0).mean() > 0.95 and (little > 0.1).mean() < 0.75
    assert (enough > 0.1).mean() > 0.95


def test_memory_and_disk_give_the_same_rare_crops(source, monkeypatch) -> None:
    memory = crops(source, count=20)
    monkeypatch.setattr(adapters.sampling.streams, "RAM_LIMIT_BYTES", 0)
    assert np.array_equal(memory, crops(source, count=20))
