"""A file of a newer mfmd is told apart from a damaged one: its own code, no repair, and nothing of it is changed."""

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from storage.checking.state import check_state, repair_state
from storage.errors import CorruptCheckpoint, NewerRecord, NewerVersion
from storage.layout import StateLayout
from storage.registry.registry import CheckpointRegistry
from storage.rounds.folder import RoundStore
from storage.source.labelled import LabelledSet

RECORDS = {
    "manifest": "checkpoints/versions/*/manifest.json",
    "serving": "checkpoints/refs/serving",
    "previous": "checkpoints/refs/previous",
    "pin": "checkpoints/refs/pinned-*",
    "spec": "rounds/*/spec.json",
    "round": "rounds/*/round.json",
    "source": "source/current.json",
    "index": "source/*/index.json",
}
CHANGES = {"number": {"schema_version": 99}, "number and field": {"schema_version": 3, "new": 1}, "field": {"new": 1}}


def _path(layout: StateLayout, name: str) -> Path:
    if name == "pin":
        registry = CheckpointRegistry(layout.checkpoints)
        registry.pin(registry.versions()[-1], "operator", "kept")
    return sorted(layout.root.glob(RECORDS[name]))[-1]


def _edit(path: Path, **fields: object) -> bytes:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    return path.read_bytes()


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", RECORDS)
def test_it_is_reported_as_newer_and_left_alone(whole: StateLayout, name: str, change: str) -> None:
    path = _path(whole, name)
    written = _edit(path, **CHANGES[change])
    problems = check_state(whole)
    assert {problem.code for problem in problems} == {"record_newer"}
    assert all("use the mfmd that wrote it" in problem.detail and not problem.repairable for problem in problems)
    repair_state(whole)
    assert path.read_bytes() == written


@pytest.mark.parametrize("name", RECORDS)
def test_format_1_may_be_written_out(whole: StateLayout, name: str) -> None:
    _edit(_path(whole, name), schema_version=1)
    assert check_state(whole) == []


@pytest.mark.parametrize("name", RECORDS)
def test_damage_stays_damage(whole: StateLayout, name: str) -> None:
    path = _path(whole, name)
    path.write_text('{"schema_version": 99, "ver')
    assert not {problem.code for problem in check_state(whole)} & {"record_newer"}
    assert check_state(whole)


def test_the_manifest_names_the_mfmd_that_wrote_it(whole: StateLayout) -> None:
    registry = CheckpointRegistry(whole.checkpoints)
    version = registry.versions()[-1]
    _edit(registry.folder(version) / "manifest.json", schema_version=7, libraries={"mfmd": "9.1"})
    with pytest.raises(NewerVersion, match=r"format 7, this mfmd reads up to 3.*\(9\.1\)") as caught:
        registry.verify(version)
    assert caught.value.code == "record_newer"
    assert isinstance(caught.value, CorruptCheckpoint), "whoever keeps the old version for damage keeps it here too"


def test_a_rollback_to_a_newer_version_is_no_damage(whole: StateLayout) -> None:
    registry = CheckpointRegistry(whole.checkpoints)
    _edit(registry.folder(1) / "manifest.json", schema_version=7)
    with pytest.raises(NewerVersion, match=r"format 7.*nothing was rolled back") as caught:
        registry.roll_back(to=None, by="operator", reason="")
    assert caught.value.code == "record_newer" and registry.serving_version() == 2


def test_every_reader_says_newer(whole: StateLayout) -> None:
    registry, round = CheckpointRegistry(whole.checkpoints), RoundStore(whole.rounds).latest()
    assert round is not None
    for name in ("serving", "spec", "round", "index"):
        _edit(_path(whole, name), schema_version=2)
    for read in (registry.serving, round.spec, round.record, lambda: LabelledSet.open(whole)):
        with pytest.raises(NewerRecord, match="of format 2, this mfmd reads up to 1"):
            read()


def test_a_newer_line_of_the_history_stays_and_is_not_skipped(whole: StateLayout) -> None:
    path = whole.checkpoints / "history.jsonl"
    line = json.loads(path.read_text().splitlines()[-1]) | {"schema_version": 2, "event": "frozen"}
    path.write_text(path.read_text() + json.dumps(line) + "\n")
    before = path.read_bytes()
    with pytest.raises(NewerRecord, match=r"history\.jsonl: a HistoryEvent of format 2"):
        CheckpointRegistry(whole.checkpoints).history()
    assert {problem.code for problem in check_state(whole)} == {"record_newer"}
    repair_state(whole)
    assert path.read_bytes() == before


def test_newer_observations_are_not_removed(whole: StateLayout) -> None:
    with closing(sqlite3.connect(whole.observations)) as connection:
        connection.execute("PRAGMA user_version = 99")
    assert {problem.code for problem in repair_state(whole).left} == {"record_newer"}
    assert whole.observations.exists()


def test_a_newer_array_is_not_called_damaged(whole: StateLayout) -> None:
    path = whole.frames_zarr / "images" / "zarr.json"
    path = path if path.exists() else next(whole.frames_zarr.glob("*/zarr.json"))
    content = json.loads(path.read_text())
    content["attributes"]["mfmd"]["schema"] = 2
    path.write_text(json.dumps(content))
    assert "record_newer" in {problem.code for problem in repair_state(whole).left}
