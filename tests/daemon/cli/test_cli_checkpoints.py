"""`mfmd checkpoints` and `mfmd rollback` on a real registry."""

import errno
import json
import os
import resource
import shutil

import pytest

from daemon.cli.errors import report
from daemon.exit_codes import ExitCode
from storage.layout import StateLayout
from storage.registry.manifest import HistoryEvent
from storage.registry.registry import CheckpointRegistry
from storage.registry.shadow_record import ShadowRecord, ShadowRecords
from storage.rounds.folder import RoundStore
from storage.rounds.records import RoundSpec


def test_empty_registry_says_what_to_do(mfmd) -> None:
    answer = mfmd("checkpoints", "list")
    assert answer.code == ExitCode.OK and "mfmd pretrain" in answer.out
    assert json.loads(mfmd("checkpoints", "list", "--json").out) == []


def test_list_names_versions_scores_and_marks(mfmd, registry: CheckpointRegistry) -> None:
    registry.pin(3, by="operator")
    rows = json.loads(mfmd("checkpoints", "list", "--json").out)
    marks = [(1, ["previous"]), (2, ["serving"]), (3, ["pinned", "never served"])]
    assert [(row["version"], row["marks"]) for row in rows] == marks
    assert rows[1]["parent"] == 1 and rows[1]["scores"] == {"source_miou": 0.5}
    lines = mfmd("checkpoints", "list").out.splitlines()
    assert len(lines) == 4 and "source_miou 50.00 %" in lines[2] and lines[2].endswith("serving")


def test_versions_that_the_gate_turned_down_are_marked_and_no_rollback_takes_them(
    mfmd, registry: CheckpointRegistry
) -> None:
    registry.record(HistoryEvent(at=1.0, event="rejected", version=3, previous=2, by="gate", reason="odd"))
    rows = json.loads(mfmd("checkpoints", "list", "--json").out)
    assert [row["marks"] for row in rows] == [["previous"], ["serving"], ["never served", "rejected"]]
    assert mfmd("checkpoints", "list").out.splitlines()[3].endswith("never served, rejected")
    assert json.loads(mfmd("rollback", "--json").out)["version"] == 1
    assert mfmd("rollback").code == ExitCode.NO_CHECKPOINT


def test_a_shadow_is_marked_and_its_record_shown(mfmd, registry: CheckpointRegistry) -> None:
    assert mfmd("checkpoints", "shadow", "3", "--reason", "look").code == ExitCode.OK
    assert json.loads(mfmd("checkpoints", "list", "--json").out)[2]["marks"] == ["shadow", "never served"]
    records = ShadowRecords(registry.root.parent / "shadow")
    for plane in ("one", "two"):
        record = ShadowRecord(candidate=3, serving=2, images=2, pixels=20, same=15, since=1.0, updated=2.0)
        records.write(plane, record)
    (shadow,) = json.loads(mfmd("checkpoints", "show", "3", "--json").out)["shadow"]
    assert (shadow["serving"], shadow["images"], shadow["agreement"]) == (2, 4, 0.75)
    assert mfmd("checkpoints", "unshadow", "--reason", "seen").code == ExitCode.OK
    events = [(item.event, item.version, item.by, item.reason) for item in registry.history()[-2:]]
    assert events == [("shadow_started", 3, "operator", "look"), ("shadow_ended", 3, "operator", "seen")]


def test_a_damaged_version_is_listed_as_such(mfmd, registry: CheckpointRegistry) -> None:
    (registry.weights_path(3).parent / "manifest.json").write_text("{torn", encoding="utf-8")
    rows = json.loads(mfmd("checkpoints", "list", "--json").out)
    assert [row["version"] for row in rows] == [1, 2, 3]
    assert rows[2]["marks"] == ["never served", "corrupt"]
    assert "corrupt" in mfmd("checkpoints", "list").out


def test_a_version_of_a_newer_mfmd_is_not_listed_as_damaged(mfmd, registry: CheckpointRegistry) -> None:
    path = registry.weights_path(3).parent / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema_version": 99}), encoding="utf-8")
    rows = json.loads(mfmd("checkpoints", "list", "--json").out)
    assert rows[2]["marks"] == ["never served", "of a newer mfmd"]


def test_a_damaged_ref_hides_no_version(mfmd, registry: CheckpointRegistry) -> None:
    registry.ref_path("serving").write_text("garbage")
    listed = mfmd("checkpoints", "list", "--json")
    rows = json.loads(listed.out)
    assert [row["version"] for row in rows] == [1, 2, 3] and not any("serving" in row["marks"] for row in rows)
    assert "previous" in [mark for row in rows for mark in row["marks"]]
    for told in (listed, mfmd("checkpoints", "show", "2")):
        assert told.err.count("refs/serving: not a ref") == 1 and "`mfmd check --repair`" in told.err


def test_a_serving_version_whose_folder_is_gone_is_told(mfmd, registry: CheckpointRegistry) -> None:
    shutil.rmtree(registry.folder(2))
    listed = mfmd("checkpoints", "list", "--json")
    assert [row["version"] for row in json.loads(listed.out)] == [1, 3]
    assert f"version 2 should serve, but its folder {registry.folder(2)} is missing" in listed.err
    assert "serve another with `mfmd promote N`; others: 1, 3" in listed.err
    for version in (1, 3):
        shutil.rmtree(registry.folder(version))
    empty = mfmd("checkpoints", "list")
    assert "No checkpoint yet" not in empty.out and "no other version exists" in empty.err


def test_a_serving_ref_that_is_gone_is_told_and_nothing_is_pruned(mfmd, registry: CheckpointRegistry) -> None:
    registry.ref_path("serving").unlink()
    listed = mfmd("checkpoints", "list", "--json")
    assert len(json.loads(listed.out)) == 3 and "refs/serving: missing, but version 2" in listed.err
    for arguments in (("checkpoints", "prune", "--keep", "0"), ("checkpoints", "prune", "--dry-run"), ("rollback",)):
        answer = mfmd(*arguments)
        assert answer.code == ExitCode.FAILURE and "refs/serving: missing, but version 2" in answer.err
    assert registry.versions() == [1, 2, 3], "the version that serves is not removed because its ref is gone"


@pytest.mark.parametrize("damage", ["garbage", None])
def test_rollback_to_a_version_needs_no_serving_ref(mfmd, registry: CheckpointRegistry, damage: str | None) -> None:
    path = registry.ref_path("serving")
    path.unlink() if damage is None else path.write_text(damage)
    answer = mfmd("rollback", "--to", "1", "--reason", "the ref is damaged", "--json")
    assert answer.code == ExitCode.OK and json.loads(answer.out)["previous"] is None
    serving, event = registry.serving(), registry.history()[-1]
    assert serving is not None and serving.version == 1
    assert (event.event, event.version, event.previous) == ("rolled_back", 1, 2)


@pytest.mark.parametrize("to", [("--to", "1"), ()])
def test_a_rollback_onto_a_damaged_version_says_how_to_find_another(mfmd, registry: CheckpointRegistry, to) -> None:
    registry.weights_path(1).write_bytes(b"something else!!!!!!!!")
    answer = mfmd("rollback", *to)
    assert answer.code == ExitCode.FAILURE and "error[checkpoint_corrupt]" in answer.err
    assert "nothing was rolled back: `mfmd checkpoints verify` says which versions are intact" in answer.err
    assert "`mfmd promote N` serves another" in answer.err
    assert registry.serving().version == 2


def test_show_tells_manifest_and_history_and_verifies(mfmd, registry: CheckpointRegistry) -> None:
    shown = json.loads(mfmd("checkpoints", "show", "2", "--json").out)
    assert shown["manifest"]["files"]["model.safetensors"]["size"] > 0
    assert [event["event"] for event in shown["history"]] == ["added", "promoted"]
    assert "better" in mfmd("checkpoints", "show", "2").out
    registry.weights_path(2).write_bytes(b"something else!!!!!!!!")
    answer = mfmd("checkpoints", "show", "2")
    assert answer.code == ExitCode.FAILURE and "error[checkpoint_corrupt]" in answer.err


def test_pin_and_unpin(mfmd, registry: CheckpointRegistry) -> None:
    assert mfmd("checkpoints", "pin", "3", "--reason", "winter").code == ExitCode.OK
    assert registry.pins() == [3]
    assert registry.history()[-1].reason == "winter"
    assert mfmd("checkpoints", "unpin", "3").code == ExitCode.OK
    assert registry.pins() == []
    assert mfmd("checkpoints", "unpin", "3").code == ExitCode.NO_CHECKPOINT
    assert mfmd("checkpoints", "pin", "9").code == ExitCode.NO_CHECKPOINT


def test_rollback_goes_to_the_previous_version_and_is_remembered(mfmd, registry: CheckpointRegistry) -> None:
    answer = mfmd("rollback", "--reason", "poles vanish", "--json")
    assert answer.code == ExitCode.OK
    assert json.loads(answer.out)["version"] == 1 and json.loads(answer.out)["previous"] == 2
    event = registry.history()[-1]
    assert (event.event, event.version, event.previous, event.reason) == ("rolled_back", 1, 2, "poles vanish")
    assert event.by == "operator"
    assert registry.state().rolled_back == {2}
    assert "rolled back" in mfmd("checkpoints", "list").out


def test_promote_serves_any_version_and_rollback_leads_back(mfmd, registry: CheckpointRegistry) -> None:
    refused = mfmd("rollback", "--to", "3")
    assert refused.code == ExitCode.FAILURE
    assert "error[version_not_earlier]" in refused.err and "`mfmd promote 3` serves it" in refused.err
    answer = mfmd("promote", "3", "--reason", "trained on the new camera")
    assert answer.code == ExitCode.OK and answer.out == "Version 3 serves (before: 2).\n"
    event = registry.history()[-1]
    assert (event.event, event.by, event.reason) == ("promoted", "operator", "trained on the new camera")
    back = json.loads(mfmd("rollback", "--json").out)
    assert (back["version"], back["previous"]) == (2, 3)
    again = json.loads(mfmd("promote", "3", "--expected", "2", "--json").out)
    assert (again["version"], registry.state().rolled_back) == (3, frozenset())
    assert mfmd("rollback", "--to", "1").code == ExitCode.OK


def test_promote_refuses_what_cannot_serve(mfmd, registry: CheckpointRegistry) -> None:
    registry.weights_path(3).write_bytes(b"damaged")
    for arguments, code in (
        (("3",), ExitCode.FAILURE),
        (("9",), ExitCode.NO_CHECKPOINT),
        (("2",), ExitCode.FAILURE),
        (("1", "--expected", "1"), ExitCode.FAILURE),
        (("1", "--reason", "a\x00b"), ExitCode.USAGE),
    ):
        assert mfmd("promote", *arguments).code == code, arguments
    serving = registry.serving()
    assert serving is not None and serving.version == 2


def test_rollback_from_an_expected_version_goes_back_once(mfmd, registry: CheckpointRegistry) -> None:
    assert mfmd("rollback", "--expected", "2").code == ExitCode.OK
    again = mfmd("rollback", "--expected", "2")
    assert again.code == ExitCode.FAILURE and "error[serving_changed]" in again.err
    serving = registry.serving()
    assert serving is not None and serving.version == 1


def test_rollback_refuses_what_cannot_serve(mfmd, registry: CheckpointRegistry) -> None:
    registry.weights_path(1).write_bytes(b"damaged")
    assert mfmd("rollback").code == ExitCode.FAILURE
    assert mfmd("rollback", "--to", "9").code == ExitCode.NO_CHECKPOINT
    assert mfmd("rollback", "--to", "2").code == ExitCode.FAILURE
    serving = registry.serving()
    assert serving is not None and serving.version == 2, "the old one serves on"


@pytest.mark.parametrize("command", ["rollback", "promote 3", "checkpoints pin 3", "checkpoints unshadow"])
def test_a_reason_of_bytes_that_are_not_utf8_is_one_clear_error(
    mfmd, registry: CheckpointRegistry, command: str
) -> None:
    before = registry.history()
    answer = mfmd(*command.split(), "--reason", os.fsdecode(b"caf\xe9"))
    assert answer.code == ExitCode.USAGE
    assert "error[reason_invalid]: reason: '\\udce9' at position 3 is not text" in answer.err
    assert registry.history() == before


def test_a_write_that_the_system_refuses_is_told_with_its_file_and_moves_nothing(
    mfmd, registry: CheckpointRegistry
) -> None:
    """The file size limit: the kernel refuses the write, as it does on a full disk."""
    before, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    history = registry.ref_path("serving").parents[1] / "history.jsonl"
    resource.setrlimit(resource.RLIMIT_FSIZE, (history.stat().st_size, hard))
    try:
        answer = mfmd("rollback")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (before, hard))
    assert answer.code == ExitCode.FAILURE and "error[system]: " in answer.err and str(history) in answer.err
    assert registry.serving().version == 2
    assert mfmd("rollback").code == ExitCode.OK and registry.serving().version == 1


@pytest.mark.parametrize(("code", "advised"), [(errno.ENOSPC, True), (errno.EDQUOT, True), (errno.EIO, False)])
def test_a_full_disk_is_told_with_what_to_do(capsys: pytest.CaptureFixture[str], code: int, advised: bool) -> None:
    assert report(OSError(code, os.strerror(code), "/state/history.jsonl")) == ExitCode.FAILURE
    told = capsys.readouterr().err
    assert "/state/history.jsonl" in told and ("free space on that disk" in told) == advised


def test_rollback_without_versions(mfmd) -> None:
    answer = mfmd("rollback")
    assert answer.code == ExitCode.NO_CHECKPOINT and "error[version_unknown]" in answer.err


def test_explain_a_version_or_say_that_there_is_none(mfmd, registry, settings):
    text = mfmd("explain", 2).out
    assert text.startswith("Version 2 serves.")
    assert "version 2 began to serve in place of version 1 (by gate: better)" in text
    registry.roll_back(to=None, by="operator", reason="poles vanish")
    told = json.loads(mfmd("explain", 2, "--json").out)
    assert told["version"]["title"] == "Version 2 served earlier; version 1 serves." and "round" not in told
    assert "never served" in mfmd("explain", 3, "--version").out
    for arguments, code in (([9], "version_unknown"), ([2, "--round"], "round_unknown")):
        answer = mfmd("explain", *arguments)
        assert answer.code and f"error[{code}]" in answer.err
    spec = RoundSpec(
        round=2, incumbent=1, released=1, train_frames=(1, 2), holdout_frames=(3,), settings={}, created=1.0,
        trigger="manual",
    )  # fmt: skip
    RoundStore(StateLayout(settings.state).rounds).create(spec)
    both = mfmd("explain", 2).out
    assert both.startswith("Round 2 has not ended: it is planned.") and "\n\nVersion 2 served earlier" in both
    newest = mfmd("explain").out
    assert newest.startswith("Round 2") and "The next round waits for: " in newest
    with StateLayout(settings.state).lock():  # as a daemon that runs the round
        assert "The next round waits for: the end of the one that runs." in mfmd("explain").out
    assert "the end of the one" not in newest
