"""`mfmd check`: exit codes and what it prints; what it finds is tested in tests/storage/checking."""

import json

from storage.layout import StateLayout


def test_nothing_wrong(mfmd, registry) -> None:
    assert mfmd("check") == (0, "No problem found.\n", "")
    assert json.loads(mfmd("check", "--read-data", "--json").out) == {"ok": True, "problems": [], "repaired": []}


def test_an_error_is_told_repaired_and_gone(mfmd, registry) -> None:
    registry.ref_path("serving").write_text("{")
    answer = mfmd("check")
    assert answer.code == 1
    assert "ref_damaged" in answer.out and "--repair" in answer.out and answer.out.endswith("1 errors\n")
    found = json.loads(mfmd("check", "--json").out)
    assert not found["ok"]
    (problem,) = found["problems"]
    assert (problem["code"], problem["severity"], problem["repairable"]) == ("ref_damaged", "error", True)
    assert problem["path"] == str(registry.ref_path("serving"))
    repaired = mfmd("check", "--repair")
    assert repaired.code == 0 and repaired.out.startswith("repaired ") and repaired.out.endswith("1 repaired\n")
    assert mfmd("check").code == 0


def test_leftovers_are_no_failure(mfmd, registry) -> None:
    (registry.root / "versions" / ".000009.partial").mkdir()
    answer = mfmd("check")
    assert answer.code == 0 and "leftover" in answer.out


def test_what_cannot_be_repaired_stays_an_error(mfmd, registry) -> None:
    registry.weights_path(3).unlink()
    answer = mfmd("check", "--repair", "--json")
    assert answer.code == 1
    assert [problem["code"] for problem in json.loads(answer.out)["problems"]] == ["version_damaged"]


def test_repair_needs_the_daemon_stopped(mfmd, registry, settings) -> None:
    with StateLayout(settings.state).lock():
        assert mfmd("check").code == 0
        answer = mfmd("check", "--repair")
    assert answer.code == 4 and "already_running" in answer.err
