"""Streams of crops: the order of images, going on from a position, rows of several processes."""

import pytest
import torch

import adapters.sampling.streams
from adapters.sampling.crops import SourceCrops, TargetCrops
from adapters.sampling.streams import image_of
from storage.buffer.frames import FrameBuffer
from storage.source.labelled_import import import_labelled


@pytest.fixture(params=["memory", "disk"])
def make(request, training_state, monkeypatch):
    """Both kinds of crops, on the rows of one process of several; from memory and from disk (read ahead)."""
    if request.param == "disk":
        monkeypatch.setattr(adapters.sampling.streams, "RAM_LIMIT_BYTES", 0)
    training_state.draw_source()
    settings = training_state.settings()
    source = import_labelled(settings, training_state.layout)
    training_state.fill_buffer(settings)
    with FrameBuffer.open(training_state.layout, settings.buffer, writable=False) as buffer:

        def streams(batch_size: int, rank: int = 0, processes: int = 1):
            common = {"crop": (32, 48), "batch_size": batch_size, "seed": (3,), "rank": rank, "processes": processes}
            yield SourceCrops(source, source.train, scale=(0.7, 1.5), **common)
            yield TargetCrops(buffer, buffer.records(), settings.recipe, **common)

        yield streams


def equal(one, other) -> bool:
    return all(torch.equal(*pair) for pair in zip(one, other, strict=True))


def test_every_image_is_used_before_any_is_used_again() -> None:
    drawn = [image_of(row, 5, (0,)) for row in range(15)]
    assert [sorted(drawn[start : start + 5]) for start in (0, 5, 10)] == [list(range(5))] * 3
    assert drawn[:5] != drawn[5:10]
    assert [image_of(row, 5, (0,)) for row in reversed(range(15))] == drawn[::-1], "any position may be asked for"


def test_a_stream_goes_on_where_it_was_saved(make) -> None:
    for stream, again in zip(make(2), make(2), strict=True):
        for _ in range(7):
            next(stream)
        state = stream.state_dict()
        assert state == {"batches": 7}
        again.load_state_dict(state)
        assert all(equal(next(stream), next(again)) for _ in range(5))
        assert stream.state_dict() == again.state_dict()


def test_two_processes_draw_the_halves_of_the_common_batch(make) -> None:
    for whole, first, second in zip(make(4), make(2, 0, 2), make(2, 1, 2), strict=True):
        for _ in range(4):
            halves = [torch.cat(parts) for parts in zip(next(first), next(second), strict=True)]
            assert equal(next(whole), halves)


def test_two_small_batches_are_one_large_one(make) -> None:
    for whole, half in zip(make(4), make(2), strict=True):
        halves = [torch.cat(parts) for parts in zip(next(half), next(half), strict=True)]
        assert equal(next(whole), halves)


def test_opening_and_moving_a_stream_leaves_the_random_numbers_of_dropout_alone(make) -> None:
    """A round that goes on restores them first, then the positions of its streams."""
    before = torch.get_rng_state()
    for stream in make(2):
        next(stream)
        stream.load_state_dict({"batches": 3})
        next(stream)
    assert torch.equal(torch.get_rng_state(), before)
