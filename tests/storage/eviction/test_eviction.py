"""The policies by themselves: whom they choose, that they choose the same after a restart, what each of them keeps."""

import hashlib
import time
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.buffer import BufferSettings
from storage.buffer.observations import Observation, Observations, read_embeddings
from storage.eviction.build import build_eviction
from storage.eviction.diverse import Diverse
from storage.eviction.neighbours import Neighbours
from storage.eviction.plain import Fifo, Reservoir
from storage.eviction.policy import Embedding, Held
from storage.layout import StateLayout


def held(*ids: int) -> list[Held]:
    return [Held(number, hashlib.sha256(str(number).encode()).hexdigest(), "") for number in ids]


def embedded(vectors: dict[int, list[float]], released: int = 1):
    """A reader of these embeddings."""

    def read(frames):
        return [
            Embedding(number, released, np.array(vectors[number], np.float32)) for number in frames if number in vectors
        ]

    return read


def points(count: int, seed: int = 0, size: int = 3) -> dict[int, list[float]]:
    return {
        number: row.tolist() for number, row in enumerate(np.random.default_rng(seed).normal(size=(count, size)), 1)
    }


@given(st.integers(0, 30), st.sets(st.integers(1, 30)), st.sets(st.integers(1, 30)))
@settings(deadline=None)
def test_every_policy_names_each_frame_that_may_leave_once_and_no_other(count, may_leave, seen):
    frames = held(*range(1, count + 1))
    may_leave = {number for number in may_leave if number <= count}
    vectors = {number: row for number, row in points(30).items() if number in seen}
    for policy in (Fifo(), Reservoir(), Diverse(embedded(vectors))):
        for _ in range(2):  # what is remembered between two calls changes nothing
            order = list(policy.order(frames, may_leave))
            assert Counter(order) == Counter(may_leave), policy


def test_a_reservoir_is_a_uniform_sample_of_all_that_came():
    """200 streams of 60 frames with seeded digests into 12 places; chi-square over the places in the stream."""
    rng, policy, kept = np.random.default_rng(11), Reservoir(), np.zeros(60)
    for _ in range(200):
        stream = [Held(number, rng.bytes(32).hex(), "") for number in range(60)]
        buffer: list[Held] = []
        for start in range(0, 60, 5):
            buffer += stream[start : start + 5]
            surplus = max(0, len(buffer) - 12)
            order = policy.order(buffer, {frame.id for frame in buffer})
            gone = {next(order) for _ in range(surplus)}
            buffer = [frame for frame in buffer if frame.id not in gone]
        kept[[frame.id for frame in buffer]] += 1
    expected = 200 * 12 / 60
    # One stream keeps exactly 12 of 60, so the counts vary less than multinomial ones: by the factor 1 - 12/60.
    chi_square = float(((kept - expected) ** 2 / expected).sum()) / (1 - 12 / 60)
    assert 34 < chi_square < 91, "59 degrees of freedom: 0.5 % of uniform samples lie outside on each side"


def test_the_grouping_of_a_stream_does_not_change_the_reservoir():
    frames, policy = held(*range(1, 41)), Reservoir()

    def through(group: int) -> set[int]:
        buffer: list[Held] = []
        for start in range(0, 40, group):
            buffer += frames[start : start + group]
            order = list(policy.order(buffer, {frame.id for frame in buffer}))
            gone = set(order[: max(0, len(buffer) - 7)])
            buffer = [frame for frame in buffer if frame.id not in gone]
        return {frame.id for frame in buffer}

    assert through(1) == through(3) == through(40)


def test_of_two_that_look_alike_the_older_leaves_and_the_rare_one_stays():
    policy = Diverse(embedded({1: [9.0, 9.0], 2: [0.0, 0.0], 3: [5.0, 0.0], 4: [0.1, 0.0], 5: [0.1, 0.2]}))
    assert list(policy.order(held(1, 2, 3, 4, 5), {1, 2, 3, 4, 5}))[:3] == [2, 4, 3]


def test_a_frame_that_may_not_leave_still_stands_for_others():
    policy = Diverse(embedded({1: [0.0], 2: [0.1], 3: [5.0], 4: [7.0]}))
    assert next(policy.order(held(1, 2, 3, 4), {2, 3, 4})) == 2
    assert next(policy.order(held(1, 2, 3, 4), {3, 4})) == 3


def test_frames_not_seen_yet_stay_until_nothing_else_is_left():
    policy = Diverse(embedded({1: [0.0], 2: [0.1], 3: [9.0]}))
    assert list(policy.order(held(1, 2, 3, 4, 5, 6), set(range(1, 7)))) == [1, 2, 3, 4, 5, 6]
    policy = Diverse(embedded({4: [0.0], 5: [0.1], 6: [9.0]}))
    assert list(policy.order(held(1, 2, 3, 4, 5, 6), set(range(1, 7)))) == [4, 5, 6, 1, 2, 3]


def test_a_burst_of_unseen_frames_does_not_wash_out_the_rest():
    policy = Diverse(embedded({1: [0.0], 2: [0.1]}))
    assert list(policy.order(held(*range(1, 9)), set(range(1, 9)))) == [3, 4, 1, 2, 5, 6, 7, 8]


def test_embeddings_of_an_older_release_or_broken_ones_go_first():
    vectors = {number: Embedding(number, 1, np.array([float(number)], np.float32)) for number in (1, 2, 3)}
    policy = Diverse(lambda frames: [vectors[number] for number in frames if number in vectors])
    assert list(policy.order(held(1, 2, 3), {1, 2, 3})) == [1, 2, 3]
    vectors[4] = Embedding(4, 2, np.array([0.0], np.float32))
    vectors[5] = Embedding(5, 2, np.array([np.nan], np.float32))
    vectors[6] = Embedding(6, 2, np.array([0.5], np.float32))
    assert list(policy.order(held(2, 3, 4, 5, 6), {2, 3, 4, 5, 6})) == [2, 3, 5, 4, 6]


@given(
    st.lists(st.tuples(st.sets(st.integers(1, 40), max_size=12), st.sets(st.integers(1, 40), max_size=8)), max_size=8)
)
@settings(deadline=None)
def test_neighbours_kept_up_to_date_are_those_found_anew(changes):
    """Frames come and go; what is remembered gives the order that a fresh start gives."""
    vectors, there, remembered = points(40, seed=3), set(), Neighbours()
    for come, go in changes:
        remembered.keep(there - go)
        there -= go
        fresh = come - there
        remembered.add({number: np.array(vectors[number], np.float32) for number in fresh})
        there |= fresh
        anew = Neighbours()
        anew.add({number: np.array(vectors[number], np.float32) for number in there})
        assert remembered.ids == anew.ids == sorted(there)
        assert list(remembered.closest_first(there)) == list(anew.closest_first(there))


def test_thinning_is_the_greedy_one_by_brute_force():
    vectors = points(25, seed=5)
    there, expected = sorted(vectors), []
    while len(there) > 1:
        pairs = [(np.subtract(vectors[a], vectors[b]), a) for a in there for b in there if a < b]
        expected.append(min((float(gap @ gap), a) for gap, a in pairs)[1])
        there.remove(expected[-1])
    assert list(Diverse(embedded(vectors)).order(held(*vectors), set(vectors))) == [*expected, *there]


def test_diverse_keeps_both_conditions_where_fifo_loses_one():
    rng = np.random.default_rng(2)
    vectors = {number: (rng.normal(size=8) + (20 if number <= 50 else 0)).tolist() for number in range(1, 401)}
    left = {}
    for policy in (Fifo(), Diverse(embedded(vectors))):
        frames: list[Held] = []
        for number in range(1, 401):
            frames += held(number)
            if len(frames) > 60:
                gone = next(policy.order(frames, {frame.id for frame in frames}))
                frames = [frame for frame in frames if frame.id != gone]
        left[type(policy)] = sum(frame.id <= 50 for frame in frames)
    assert left[Fifo] == 0
    assert left[Diverse] >= 10, left


def test_the_buffers_policy_is_the_one_that_the_settings_name(tmp_path: Path):
    layout = StateLayout(tmp_path)
    kinds = {
        name: type(build_eviction(BufferSettings(eviction=name), partial(read_embeddings, layout)))
        for name in ("fifo", "reservoir", "diverse")
    }
    assert kinds == {"fifo": Fifo, "reservoir": Reservoir, "diverse": Diverse}


def test_embeddings_come_from_the_observers_database_and_ingest_does_without(tmp_path: Path):
    layout = StateLayout(tmp_path / "state")
    layout.create()
    read = partial(read_embeddings, layout)
    assert read([1, 2]) == []
    area = np.ones(2, np.float32)
    with Observations.open(layout.observations, writable=True) as observations:
        observations.add([Observation(2, 1, 7, time.time(), 0.1, 0.9, area, np.array([1.5, 2.5], np.float32), area)])
    (found,) = read([1, 2])
    assert (found.frame, found.released, found.vector.tolist()) == (2, 7, [1.5, 2.5])
    for path in layout.buffer.glob("observations.sqlite*"):
        path.write_bytes(b"rubbish" * 1000)
    assert read([1, 2]) == []


@pytest.mark.parametrize("eviction", ["fifo", "reservoir", "diverse"])
def test_newcomers_are_only_given_up_by_a_policy_that_says_so(eviction, tmp_path: Path):
    assert build_eviction(
        BufferSettings(eviction=eviction), partial(read_embeddings, StateLayout(tmp_path))
    ).newcomers_may_leave == (eviction == "reservoir")
