"""`format.json`: a state directory of an earlier mfmd is upgraded, one of a later mfmd is left alone."""

import json
from pathlib import Path

import pytest

from storage.checking import check_state, repair_state
from storage.directory import upgrade
from storage.directory.format import FORMAT, begin, read_format, refuse_newer
from storage.directory.upgrade import prepare
from storage.errors import NewerFormat, StorageError
from storage.layout import StateLayout
from tests.storage.directory.conftest import killed_at, open_everything


def test_a_directory_of_format_1_is_upgraded_once(old: StateLayout) -> None:
    assert read_format(old) == 1
    with old.lock():
        assert prepare(old) == ["databases", "filters"]
        assert prepare(old) == []
    said = json.loads(old.format_file.read_text())
    assert said["format"] == FORMAT == 3 and said["mfmd"]
    assert check_state(old, read_data=True) == []
    open_everything(old)


def test_an_upgrade_that_is_killed_anywhere_is_finished_by_the_next(old: StateLayout) -> None:
    number = 0
    while not old.format_file.exists():
        number += 1
        try:
            with killed_at(number):
                prepare(old)
        except KeyboardInterrupt:
            assert {problem.code for problem in check_state(old) if problem.severity == "error"} <= {"catalog_schema"}
    assert number >= 3
    prepare(old)
    open_everything(old)


def test_the_number_is_written_after_each_step_and_no_step_is_left_out(
    old: StateLayout, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[str] = []

    def stuck(layout: StateLayout) -> None:
        raise OSError("disk full")

    steps = {1: ("one", lambda layout: ran.append("one")), 2: ("two", stuck), 3: ("three", lambda _: ran.append("3"))}
    monkeypatch.setattr(upgrade, "FORMAT", 4)
    monkeypatch.setattr(upgrade, "STEPS", steps)
    for _ in range(2):
        with pytest.raises(OSError, match="disk full"):
            prepare(old)
        assert (ran, read_format(old)) == (["one"], 2)
    steps[2] = ("two", lambda layout: ran.append("two"))
    assert prepare(old) == ["two", "three"] and ran == ["one", "two", "3"]


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
        with pytest.raises(NewerFormat, match=r"format 9 of mfmd 7\.1\.0.*reads up to 3: use mfmd 7\.1\.0 or later"):
            refused(old)
    assert [problem.code for problem in check_state(old)] == ["record_newer"]
    assert (sorted(old.root.rglob("*")), old.format_file.read_text()) == (before, content)


def test_a_damaged_format_is_found_and_removed(old: StateLayout) -> None:
    old.format_file.write_text('{"format": ')
    refuse_newer(old)
    with pytest.raises(StorageError, match=r"format\.json: not the format.*check --repair"):
        prepare(old)
    assert [problem.code for problem in check_state(old)] == ["format_damaged", "catalog_schema"]
    assert repair_state(old).left == [] and read_format(old) == 1
