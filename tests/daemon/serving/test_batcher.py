"""Batches: the same answers as alone, bounded, and one bad image does not spoil the others."""

import threading
from collections.abc import Iterator
from concurrent.futures import Future

import numpy as np
import pytest
import torch

from adapters.inference.segment import segment_image
from daemon.serving.batcher import Fitted
from daemon.serving.errors import ApiError, QueueFull
from daemon.serving.plane import InferencePlane
from daemon.serving.versions.slots import Resident
from storage.media.images import fit_frame
from tests.daemon.serving.serving_world import HEIGHT, WIDTH, World, picture


def fitted(height: int = HEIGHT, width: int = WIDTH, seed: int = 0) -> Fitted:
    return Fitted(fit_frame(picture(height, width, seed).copy(), HEIGHT, WIDTH), (height, width))


@pytest.fixture
def plane(world: World) -> Iterator[InferencePlane]:
    """A plane with version 1 live and its batcher not started yet: what is queued before the start shares batches."""
    version = world.add(1)
    made = InferencePlane(world.settings(queue_images=16, max_batch_images=4))
    made.swapper.serve(version)
    yield made
    made.stop()


@pytest.fixture
def resident(plane: InferencePlane) -> Iterator[Resident]:
    """The live version, leased."""
    with plane.slots.lease() as leased:
        yield leased


def sizes_of_batches(plane: InferencePlane) -> tuple[float, float]:
    """Images and batches so far."""
    sample = plane.metrics.registry.get_sample_value
    return sample("mfmd_batch_size_sum") or 0.0, sample("mfmd_batch_size_count") or 0.0


def test_batched_answers_equal_unbatched_ones(world: World, plane: InferencePlane, resident: Resident) -> None:
    # Four valid sizes interleaved, original sizes mixed within them: each answer must go to its own caller.
    shapes = [(64, 96), (48, 96), (128, 192), (64, 64), (32, 64), (64, 96), (100, 100), (24, 96), (32, 48), (64, 96)]
    answers: list[Future[np.ndarray]] = []
    for seed, shape in enumerate(shapes):
        answers += plane.batcher.submit(resident, [fitted(*shape, seed)])
    plane.batcher.start()
    results = [answer.result(30) for answer in answers]
    images, batches = sizes_of_batches(plane)
    assert images == len(shapes) and batches < len(shapes), "nothing was batched"
    for seed, (shape, labels) in enumerate(zip(shapes, results, strict=True)):
        assert labels.shape == shape
        alone = segment_image(world.networks[1], picture(*shape, seed), (HEIGHT, WIDTH))
        np.testing.assert_array_equal(labels, alone)


def test_batches_never_hold_more_than_the_limit_and_only_one_valid_size(
    plane: InferencePlane, resident: Resident
) -> None:
    sizes = {fitted(seed=0).frame.valid_height, fitted(48, 96).frame.valid_height}
    assert len(sizes) == 2
    answers = plane.batcher.submit(resident, [fitted(seed=seed) for seed in range(6)])
    answers += plane.batcher.submit(resident, [fitted(48, 96, seed) for seed in range(3)])
    plane.batcher.start()
    for answer in answers:
        answer.result(30)
    sample = plane.metrics.registry.get_sample_value
    assert sizes_of_batches(plane) == (9, 3), "4 and 2 of the one size, 3 of the other"
    assert sample("mfmd_batch_size_bucket", {"le": "2.0"}) == 1 and sample("mfmd_batch_size_bucket", {"le": "4.0"}) == 3


def test_a_lone_image_waits_no_longer_than_the_delay(world: World) -> None:
    world.add(1)
    plane = InferencePlane(world.settings(max_delay_ms=0.0, max_batch_images=64))
    plane.swapper.serve(1)
    plane.batcher.start()
    with plane.slots.lease() as resident:
        assert plane.batcher.submit(resident, [fitted()])[0].result(20).shape == (HEIGHT, WIDTH)
    plane.stop()


def test_the_queue_is_counted_in_images_and_bounded(plane: InferencePlane, resident: Resident) -> None:
    waiting = plane.batcher.submit(resident, [fitted()] * 14)
    assert plane.batcher.depth == 14
    assert plane.metrics.registry.get_sample_value("mfmd_queue_depth") == 14
    with pytest.raises(QueueFull) as full:
        plane.batcher.submit(resident, [fitted()] * 3)
    assert full.value.status == 503 and (full.value.retry_after or 0) >= 1
    assert plane.batcher.depth == 14, "a request that does not fit must leave nothing behind"
    waiting += plane.batcher.submit(resident, [fitted()] * 2)
    plane.batcher.start()
    assert all(answer.result(30).shape == (HEIGHT, WIDTH) for answer in waiting)
    assert plane.batcher.depth == 0


def test_an_answer_nobody_waits_for_is_not_computed(plane: InferencePlane, resident: Resident) -> None:
    first, second = plane.batcher.submit(resident, [fitted(seed=0), fitted(seed=1)])
    assert first.cancel()
    plane.batcher.start()
    second.result(30)
    assert sizes_of_batches(plane) == (1, 1)


def test_an_answer_nobody_waits_for_frees_its_place(plane: InferencePlane, resident: Resident) -> None:
    waiting = plane.batcher.submit(resident, [fitted(seed=seed) for seed in range(16)])
    holds = resident.holds
    assert waiting[3].cancel() and waiting[7].cancel()
    assert plane.batcher.depth == 14 and resident.holds == holds - 2
    waiting += plane.batcher.submit(resident, [fitted(seed=16), fitted(seed=17)])
    plane.batcher.start()
    assert all(answer.result(30).shape == (HEIGHT, WIDTH) for answer in waiting if not answer.cancelled())
    assert plane.batcher.depth == 0


def test_one_image_that_breaks_a_batch_does_not_fail_the_others(plane: InferencePlane, resident: Resident) -> None:
    poison = Fitted(fit_frame(np.full((HEIGHT, WIDTH, 3), 7, np.uint8), HEIGHT, WIDTH), (HEIGHT, WIDTH))

    def out_of_memory(_: object, inputs: tuple[torch.Tensor]) -> None:
        if any(float(image.std()) < 2 and image.shape[-1] == WIDTH and float(image.max()) < 0 for image in inputs[0]):
            raise RuntimeError("out of memory")

    resident.forward.network.register_forward_pre_hook(out_of_memory)
    good, bad, other = plane.batcher.submit(resident, [fitted(seed=0), poison, fitted(seed=2)])
    plane.batcher.start()
    assert good.result(30).shape == other.result(30).shape == (HEIGHT, WIDTH)
    with pytest.raises(RuntimeError, match="out of memory"):
        bad.result(30)
    assert plane.batcher.submit(resident, [fitted()])[0].result(30).shape == (HEIGHT, WIDTH), "the thread lives on"


def test_batches_hold_their_version_until_they_are_done(plane: InferencePlane) -> None:
    with plane.slots.lease() as resident:
        answers = plane.batcher.submit(resident, [fitted(), fitted()])
        assert resident.holds == 3
    answers[0].cancel()
    plane.batcher.start()
    answers[1].result(30)
    done = threading.Thread(target=plane.batcher.stop, args=(20.0,))
    done.start()
    done.join(20)
    assert resident.holds == 0


def test_stopping_answers_what_waits_and_takes_no_more(plane: InferencePlane, resident: Resident) -> None:
    answers = plane.batcher.submit(resident, [fitted(seed=seed) for seed in range(5)])
    plane.batcher.start()
    plane.batcher.stop(30.0)
    assert all(answer.done() for answer in answers)
    with pytest.raises(ApiError, match="stopping"):
        plane.batcher.submit(resident, [fitted()])
