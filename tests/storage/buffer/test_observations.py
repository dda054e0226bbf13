"""The observer's database: what goes in comes out, frames that left are forgotten, readers need no writer."""

from pathlib import Path

import numpy as np
import pytest

from storage.buffer.observations import Observation, Observations
from storage.errors import StorageError


def _observation(frame: int, entropy: float = 0.5, classes: int = 3, version: int = 1) -> Observation:
    area = np.zeros(classes, np.float32)
    area[frame % classes] = 1.0
    embedding = np.arange(4, dtype=np.float32) + frame
    return Observation(frame, version, 1, 100.0 + frame, entropy, 0.9, area, embedding, -embedding)


def test_observations_come_back_as_they_were(tmp_path: Path) -> None:
    with Observations.open(tmp_path / "o.sqlite", writable=True) as store:
        store.add([_observation(5), _observation(2)])
        first, second = store.get([5, 2, 77])
    assert (first.frame, second.frame) == (2, 5)
    assert second.released == 1
    np.testing.assert_array_equal(second.embedding, [5, 6, 7, 8])
    np.testing.assert_array_equal(second.area, [0, 0, 1])


def test_a_frame_observed_again_gets_the_new_values(tmp_path: Path) -> None:
    with Observations.open(tmp_path / "o.sqlite", writable=True) as store:
        store.add([_observation(1, entropy=0.1)])
        store.add([_observation(1, entropy=0.7, version=2)])
        found = store.get([1])
    assert [(item.entropy, item.version) for item in found] == [(0.7, 2)]


def test_the_newest_and_what_came_after_a_frame(tmp_path: Path) -> None:
    with Observations.open(tmp_path / "o.sqlite", writable=True) as store:
        assert store.newest() == 0 and store.after(0) == []
        store.add([_observation(9), _observation(2), _observation(5)])
        assert store.newest() == 9
        assert [item.frame for item in store.after(2)] == [5, 9]


def test_means_cover_the_newest_frames_only(tmp_path: Path) -> None:
    with Observations.open(tmp_path / "o.sqlite", writable=True) as store:
        assert store.means(10) is None
        store.add([_observation(frame, entropy=float(frame)) for frame in range(1, 7)])
        means = store.means(3)
    assert means is not None
    assert (means.frames, means.entropy, means.at) == (3, 5.0, 106.0)
    assert means.area == pytest.approx((1 / 3, 1 / 3, 1 / 3))


def test_means_leave_out_frames_of_another_class_list(tmp_path: Path) -> None:
    with Observations.open(tmp_path / "o.sqlite", writable=True) as store:
        store.add([_observation(1, classes=5), _observation(2, classes=3)])
        means = store.means(10)
    assert means is not None
    assert means.frames == 1
    assert len(means.area) == 3


def test_frames_that_left_the_buffer_are_forgotten(tmp_path: Path) -> None:
    with Observations.open(tmp_path / "o.sqlite", writable=True) as store:
        store.add([_observation(frame) for frame in (1, 2, 3)])
        assert store.forget_all_but([2, 9]) == 2
        assert store.observed() == {2}


def test_a_reader_follows_the_writer(tmp_path: Path) -> None:
    path = tmp_path / "o.sqlite"
    with pytest.raises(StorageError, match="no observations yet"):
        Observations.open(path, writable=False)
    with Observations.open(path, writable=True) as writer, Observations.open(path, writable=False) as reader:
        writer.add([_observation(1)])
        assert reader.observed() == {1}
        with pytest.raises(StorageError, match="readonly"):
            reader.add([_observation(2)])


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "o.sqlite"
    path.write_bytes(b"not a database at all, " * 100)
    with pytest.raises(StorageError, match=r"o\.sqlite"):
        Observations.open(path, writable=True)


def test_a_reader_of_a_file_that_is_just_being_created_finds_nothing_yet(tmp_path: Path) -> None:
    path = tmp_path / "o.sqlite"
    path.touch()
    with Observations.open(path, writable=False) as reader:
        assert (reader.newest(), reader.after(0), reader.observed(), reader.means(3)) == (0, [], set(), None)
        assert reader.damage() == ""
        with Observations.open(path, writable=True) as store:
            store.add([_observation(4)])
        assert reader.newest() == 4
