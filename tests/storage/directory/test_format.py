"""`format.json`: a state directory of an earlier mfmd is upgraded, one of a later mfmd is left alone."""

import json
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from configs.buffer import BufferSettings
from storage import failpoints
from storage.buffer.frames import FrameBuffer
from storage.buffer.observations import Observations
from storage.checking import check_state, repair_state
from storage.directory.format import FORMAT, begin, read_format, refuse_newer
from storage.directory.upgrade import prepare
from storage.errors import NewerFormat, StorageError
from storage.layout import StateLayout
from storage.registry.registry import CheckpointRegistry
from storage.rounds.folder import RoundStore
from storage.source.labelled import LabelledSet
from tests.sections import section

FORMAT_1 = Path(__file__).with_name("format_1.tar.xz")
"""A plain tar of the state directory of the mfmd before `format.json`: eight observed frames of 32x32, two imported
versions of a tiny SegFormer, one inconclusive round, a labelled source of three images."""


@pytest.fixture
def old(tmp_path: Path) -> StateLayout:
    with tarfile.open(FORMAT_1) as tar:
        tar.extractall(tmp_path, filter="data")
    return StateLayout(tmp_path / "state")


@contextmanager
def _killed_at(number: int) -> Iterator[None]:
    passed = 0

    def die(place: str) -> None:
        nonlocal passed
        passed += 1
        if passed == number:
            raise KeyboardInterrupt(place)

    failpoints.watch(die)
    try:
        yield
    finally:
        failpoints.watch(None)


def _open_everything(layout: StateLayout) -> None:
    settings = section(BufferSettings, height=32, width=32, tile=32, capacity_frames=16, holdout_fraction=0.3)
    with FrameBuffer.open(layout, settings, writable=True) as buffer:
        assert [buffer.read(record).shape for record in buffer.records()] == [(32, 32, 3)] * 8
    with Observations.open(layout.observations, writable=False) as observations:
        assert observations.observed() == {*range(1, 9)}
    registry = CheckpointRegistry(layout.checkpoints)
    assert (registry.serving_version(), registry.versions()) == (2, [1, 2])
    assert [event.event for event in registry.history()][-2:] == ["promoted", "inconclusive"]
    folder = RoundStore(layout.rounds).folder(1)
    assert folder.record().stage == "rejected" and folder.verdict() and folder.scores() and folder.progress()
    assert len(LabelledSet.open(layout)) == 3


def test_a_directory_of_format_1_is_upgraded_once(old: StateLayout) -> None:
    assert read_format(old) == 1
    with old.lock():
        assert prepare(old) == ["databases"]
        assert prepare(old) == []
    said = json.loads(old.format_file.read_text())
    assert said["format"] == FORMAT == 2 and said["mfmd"]
    assert check_state(old, read_data=True) == []
    _open_everything(old)


def test_an_upgrade_that_is_killed_anywhere_is_finished_by_the_next(old: StateLayout) -> None:
    number = 0
    while not old.format_file.exists():
        number += 1
        try:
            with _killed_at(number):
                prepare(old)
        except KeyboardInterrupt:
            assert [problem for problem in check_state(old) if problem.severity == "error"] == []
    assert number >= 3
    prepare(old)
    _open_everything(old)


def test_a_new_directory_has_the_newest_format(tmp_path: Path, old: StateLayout) -> None:
    layout = StateLayout(tmp_path / "new")
    begin(layout)
    assert read_format(layout) == FORMAT
    layout.format_file.write_text(content := '{"format": 1, "mfmd": "0.0.1"}')
    begin(layout)
    assert layout.format_file.read_text() == content
    begin(old)
    assert not old.format_file.exists(), "it has to be upgraded first"


def test_a_newer_format_is_refused_by_name_and_nothing_changes(old: StateLayout) -> None:
    content = '{"format": 9, "mfmd": "7.1.0", "what": ["is", "new"]}'
    old.format_file.write_text(content)
    before = sorted(old.root.rglob("*"))
    for refused in (read_format, refuse_newer, prepare):
        with pytest.raises(NewerFormat, match=r"format 9 of mfmd 7\.1\.0.*reads up to 2: use mfmd 7\.1\.0 or later"):
            refused(old)
    assert [problem.code for problem in check_state(old)] == ["record_newer"]
    assert (sorted(old.root.rglob("*")), old.format_file.read_text()) == (before, content)


def test_a_damaged_format_is_found_and_removed(old: StateLayout) -> None:
    old.format_file.write_text('{"format": ')
    refuse_newer(old)
    with pytest.raises(StorageError, match=r"format\.json: not a format.*check --repair"):
        prepare(old)
    assert [problem.code for problem in check_state(old)] == ["format_damaged"]
    assert repair_state(old).left == [] and read_format(old) == 1
