"""Crops: where they come from, padding, flips, rescaling, order, and reading ahead from disk."""

import itertools

import numpy as np
import pytest
import torch
from PIL import Image

import adapters.sampling.streams
from adapters.sampling.crops import SourceCrops, TargetCrops, crop_within
from adapters.sampling.margins import Region, dominated, random_region
from storage.buffer.frames import FrameBuffer
from storage.source.labelled import LabelledSet
from storage.source.labelled_import import import_labelled
from tests.sections import recipe_settings

RECIPE = recipe_settings()
"""Of DACS, which has no margins."""


@pytest.fixture
def source(training_state):
    """The imported set of eight drawn images of 48x64."""
    training_state.draw_source()
    return import_labelled(training_state.settings(), training_state.layout)


@pytest.fixture
def target(training_state):
    """An open buffer of six frames of 48x64."""
    settings = training_state.settings()
    training_state.fill_buffer(settings)
    with FrameBuffer.open(training_state.layout, settings.buffer, writable=False) as buffer:
        yield buffer


@pytest.fixture(params=["memory", "disk"])
def placement(request, monkeypatch) -> str:
    """Both places that pixels can come from."""
    if request.param == "disk":
        monkeypatch.setattr(adapters.sampling.streams, "RAM_LIMIT_BYTES", 0)
    return request.param


def occurs(crop: np.ndarray, image: np.ndarray) -> bool:
    """Whether `crop` is a rectangle of `image`, as it is or mirrored."""
    height, width = crop.shape[:2]
    return any(
        np.array_equal(part, image[top : top + height, left : left + width])
        for part in (crop, crop[:, ::-1])
        for top, left in itertools.product(range(image.shape[0] - height + 1), range(image.shape[1] - width + 1))
    )


def test_source_crops_are_rectangles_of_the_images_with_their_labels(source, placement) -> None:
    crops = SourceCrops(source, source.train, crop=(32, 48), batch_size=2, seed=(1,))
    assert crops.in_memory == (placement == "memory")
    batch = next(crops)
    assert batch.images.shape == (2, 32, 48, 3) and batch.labels.shape == (2, 32, 48)
    assert batch.images.dtype == batch.labels.dtype == torch.uint8
    joined = [np.dstack([source.images.read(index), source.labels.read(index)]) for index in source.train]
    for image, label in zip(batch.images.numpy(), batch.labels.numpy(), strict=True):
        assert any(occurs(np.dstack([image, label]), whole) for whole in joined)


def test_target_crops_are_rectangles_of_the_frames(target, placement) -> None:
    records = target.records()
    crops = TargetCrops(target, records, RECIPE, crop=(32, 48), batch_size=3, seed=(1,))
    batch = next(crops)
    assert batch.images.shape == (3, 32, 48, 3) and batch.valid.all()
    assert all(any(occurs(image, target.read(record)) for record in records) for image in batch.images.numpy())


def test_memory_and_disk_give_the_same_crops(source, target, monkeypatch) -> None:
    streams = []
    for limit in (1 << 30, 0):
        monkeypatch.setattr(adapters.sampling.streams, "RAM_LIMIT_BYTES", limit)
        crops = SourceCrops(source, source.train, crop=(32, 48), batch_size=2, seed=(3,), scale=(0.7, 1.6))
        frames = TargetCrops(target, target.records(), RECIPE, crop=(32, 48), batch_size=2, seed=(3,))
        streams.append([next(stream) for stream in (crops, frames) for _ in range(4)])
    for memory, disk in zip(*streams, strict=True):
        assert all(torch.equal(*pair) for pair in zip(memory, disk, strict=True))


def test_streams_repeat_under_a_seed_and_differ_without(source) -> None:
    def first(seed: int) -> torch.Tensor:
        crops = SourceCrops(source, source.train, crop=(32, 48), batch_size=4, seed=(seed, 0))
        return next(crops).images

    assert torch.equal(first(1), first(1))
    assert not torch.equal(first(1), first(2))


def test_both_orientations_occur(target) -> None:
    record = target.records()[0]
    crops = TargetCrops(target, [record], RECIPE, crop=(48, 64), batch_size=20, seed=(0,))
    whole = target.read(record)
    batch = next(crops).images.numpy()
    plain = sum(np.array_equal(image, whole) for image in batch)
    mirrored = sum(np.array_equal(image, whole[:, ::-1]) for image in batch)
    assert plain + mirrored == 20 and 3 <= plain <= 17


def test_images_smaller_than_the_crop_are_padded_and_marked(source, target) -> None:
    labelled = next(SourceCrops(source, source.train, crop=(60, 80), batch_size=2, seed=(0,)))
    assert (labelled.labels[:, :48, :64] < 3).all()
    assert (labelled.labels[:, 48:] == 255).all() and (labelled.labels[:, :, 64:] == 255).all()
    frames = next(TargetCrops(target, target.records(), RECIPE, crop=(60, 80), batch_size=2, seed=(0,)))
    assert frames.valid[:, :48, :64].all() and frames.valid.sum() == 2 * 48 * 64
    assert not frames.images[:, 48:].any() and not frames.images[:, :, 64:].any()


@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_rescaling_keeps_image_and_label_together(source, factor) -> None:
    crops = SourceCrops(source, source.train, crop=(32, 48), batch_size=4, seed=(0,), scale=(factor, factor))
    batch = next(crops)
    inside = batch.labels < 255
    assert inside.sum() == (4 * 32 * 48 if factor == 2.0 else 4 * 24 * 32)  # the whole image, halved, else a quarter
    red, blue = batch.images[..., 0].int(), batch.images[..., 2].int()
    agreement = torch.where(red - blue > 60, 2, torch.where(blue - red > 60, 0, 1)) == batch.labels
    assert agreement[inside].float().mean() > 0.9


def labelled_as(training_state, label: np.ndarray, **source) -> LabelledSet:
    """An imported set of four images that all carry `label`."""
    settings = training_state.settings(source=source)
    training_state.draw_source(4)
    for path in settings.source.labels.iterdir():
        Image.fromarray(label).save(path)
    return import_labelled(settings, training_state.layout)


def test_other_ignore_values_become_the_one_of_training(training_state) -> None:
    label = np.ones((48, 64), np.uint8)
    label[:20] = 200
    label[30:] = 2
    source = labelled_as(training_state, label, ignore_index=200)
    batch = next(SourceCrops(source, source.train, crop=(60, 64), batch_size=2, seed=(0,)))
    assert (batch.labels[:, :20] == 255).all() and (batch.labels[:, 48:] == 255).all()
    assert (batch.labels[:, 20:30] == 1).all() and (batch.labels[:, 30:48] == 2).all()


def test_crops_of_one_class_are_drawn_again(training_state) -> None:
    """Only a corner holds a second class: crops that miss it are avoided."""
    label = np.zeros((48, 64), np.uint8)
    label[:14, :14] = 1
    source = labelled_as(training_state, label)
    crops = next(SourceCrops(source, source.train, crop=(16, 16), batch_size=200, seed=(0,))).labels.numpy()
    generator = np.random.default_rng(0)
    unchecked = [random_region((48, 64), (16, 16), 1.0, generator).of(label) for _ in range(200)]
    assert sum(not dominated(crop, 255) for crop in crops) > 2 * sum(not dominated(crop, 255) for crop in unchecked)


def test_dominated_counts_labelled_pixels_only() -> None:
    labels = np.array([[0, 0, 0, 1], [255, 255, 255, 255]], np.uint8)
    assert dominated(labels, 255) and not dominated(np.array([[0, 0, 1, 1]], np.uint8), 255)
    assert dominated(np.full((2, 2), 255, np.uint8), 255)


def test_regions_lie_inside_and_reach_every_edge() -> None:
    generator = np.random.default_rng(0)
    regions = [random_region((20, 30), (8, 10), 1.0, generator) for _ in range(2000)]
    assert {region.top for region in regions} == set(range(13)) and {region.left for region in regions} == set(
        range(21)
    )
    assert random_region((20, 30), (40, 10), 1.0, generator).height == 20
    assert Region(1, 2, 3, 4).of(np.zeros((9, 9), np.uint8)).shape == (3, 4)


def test_crop_never_exceeds_the_frame() -> None:
    assert crop_within((512, 512), (180, 1024)) == (180, 512)


def test_an_error_while_reading_ahead_reaches_the_reader(target, monkeypatch) -> None:
    monkeypatch.setattr(adapters.sampling.streams, "RAM_LIMIT_BYTES", 0)
    stream = TargetCrops(target, target.records(), RECIPE, crop=(32, 48), batch_size=2, seed=(0,))
    next(stream)
    monkeypatch.setattr(target, "read_crop", lambda *_: (_ for _ in ()).throw(OSError("disk gone")))
    with pytest.raises(OSError, match="disk gone"):
        for _ in range(3):
            next(stream)


def test_nothing_to_draw_from_is_refused(source, target) -> None:
    with pytest.raises(ValueError, match="at least one labelled image"):
        SourceCrops(source, [], crop=(8, 8), batch_size=1, seed=(0,))
    with pytest.raises(ValueError, match="at least one frame"):
        TargetCrops(target, [], RECIPE, crop=(8, 8), batch_size=1, seed=(0,))
