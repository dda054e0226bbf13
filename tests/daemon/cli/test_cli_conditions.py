"""`mfmd conditions` with the daemon down: the file changes under the state directory's lock."""

import json

import pytest

from daemon.exit_codes import ExitCode
from storage.buffer.catalog import Catalog
from storage.gate.conditions import Condition, Conditions, ConditionStore
from storage.layout import StateLayout


@pytest.fixture
def store(settings) -> ConditionStore:
    """Two conditions; a golden frame of the first is gone."""
    layout = StateLayout(settings.state)
    layout.create()
    Catalog.open(layout.catalog, writable=True).close()
    items = tuple(
        Condition(number=number, name=f"condition-{number}", opened=1.0, last_seen=2.0, best=1, best_reason="it served",
                  centroids=((3.0 * number, 4.0),), golden=(7,) if number == 1 else (), cameras={"east": number})
        for number in (1, 2)
    )  # fmt: skip
    store = ConditionStore(layout.conditions)
    store.write(Conditions(released=1, threshold=1.5, given=2, current=2, conditions=items, cameras={"east": 2}))
    return store


def test_list_and_show(mfmd, store):
    lines = mfmd("conditions", "list").out.splitlines()
    assert len(lines) == 4 and "current" in lines[2] and lines[3] == "camera east: condition 2"
    assert json.loads(mfmd("conditions", "list", "--json").out)["current"] == 2
    assert "now condition-2; camera east in condition-2; known: condition-1 (best 1, 1 golden)" in mfmd("status").out
    text = mfmd("conditions", "show", 1).out
    for part in ("version 1: it served", "3.000 from condition 2 (threshold 1.500)", "east 1", "7 (no longer in"):
        assert part in text
    assert json.loads(mfmd("conditions", "show", 2, "--json").out)["distances"] == {"1": 3.0}


def test_changes_and_refusals(mfmd, store):
    assert mfmd("conditions", "rename", 1, "day").code == 0
    taken = mfmd("conditions", "rename", 2, "day")
    assert taken.code == ExitCode.USAGE and "error[condition_name_invalid]" in taken.err
    assert "error[condition_unknown]" in mfmd("conditions", "show", 5).err
    assert mfmd("conditions", "merge", 2, "--into", 1).code == 0
    assert "error[condition_needed]" in mfmd("conditions", "forget", 1).err
    assert [(item.name, len(item.centroids)) for item in store.read().conditions] == [("day", 2)]


def test_nothing_is_known_yet(mfmd, store):
    store.path.unlink()
    assert mfmd("conditions", "list").out.startswith("No condition is known yet")
    assert "error[condition_unknown]" in mfmd("conditions", "forget", 1).err
