"""`/v1/conditions`: what is known, and its changes by an operator, on a real server."""

import pytest

from daemon.control.client import ControlClient
from daemon.runtime.run_record import publish_record
from storage.errors import ConditionNeeded, InvalidName, UnknownCondition
from storage.gate.conditions import Condition, Conditions, ConditionStore
from tests.daemon.control.control_world import AUTHORISED
from tests.daemon.running import serving_locally


def _condition(number: int, **facts: object) -> Condition:
    row = {"number": number, "name": f"condition-{number}", "opened": 1.0, "last_seen": 2.0, "best": 1}
    return Condition.model_validate(row | {"centroids": ((float(number) * 3, 4.0),)} | facts)


@pytest.fixture
def store(world, layout) -> ConditionStore:
    store = ConditionStore(layout.conditions)
    items = (_condition(1, golden=(1, 99), cameras={"": 6}), _condition(2), _condition(3))
    store.write(
        Conditions(released=1, threshold=1.0, given=3, current=1, conditions=items, cameras={"": 1, "east": None})
    )
    return store


def test_what_is_known(world, store) -> None:
    listed = world.client.get("/v1/conditions").json()
    assert [item["number"] for item in listed["conditions"]] == [1, 2, 3]
    assert (listed["current"], listed["cameras"]) == (1, {"": 1, "east": None})
    assert listed["conditions"][0]["frames"] == 6 and listed["conditions"][0]["golden"] == 2
    one = world.client.get("/v1/conditions/1").json()
    assert one["golden_frames"]["99"] == "" and one["golden_frames"]["1"].endswith(".png")
    assert one["distances"] == {"2": 3.0, "3": 6.0}


@pytest.mark.parametrize(
    ("path", "body", "status", "code"),
    [
        ("9", None, 404, "condition_unknown"),
        ("9/forget", {}, 404, "condition_unknown"),
        ("1/rename", {"name": "condition-2"}, 422, "condition_name_invalid"),
        ("1/rename", {}, 422, "invalid_request"),
        ("1/merge", {"into": 1}, 409, "condition_needed"),
        ("1/merge", {"into": 0}, 422, "invalid_request"),
    ],
)
def test_a_wrong_request_has_a_stable_code_and_changes_nothing(world, store, path, body, status, code) -> None:
    before = store.read()
    url = f"/v1/conditions/{path}"
    got = world.client.get(url) if body is None else world.client.post(url, json=body, headers=AUTHORISED)
    assert (got.status_code, got.json()["code"]) == (status, code), got.text
    assert store.read() == before


def test_changes(world, store) -> None:
    for path, body in (("2/rename", {"name": "night"}), ("3/merge", {"into": 2}), ("1/forget", None)):
        got = world.client.post(f"/v1/conditions/{path}", json=body, headers=AUTHORISED)
        assert got.status_code == 200, got.text
    known = store.read()
    assert [(item.number, item.name, len(item.centroids)) for item in known.conditions] == [(2, "night", 2)]
    assert known.current is None and known.opens_after == 6


def test_commands_ask_the_daemon_through_its_socket(world, store, layout) -> None:
    publish_record(layout, "daemon", *world.server.address)
    with serving_locally(world.local_app, layout):
        client = ControlClient(layout)
        client.change_condition(2, "rename", {"name": "night"})
        for number, change, content, kind in (
            (9, "forget", {}, UnknownCondition),
            (1, "rename", {"name": "night"}, InvalidName),
            (1, "merge", {"into": 1}, ConditionNeeded),
        ):
            with pytest.raises(kind):
                client.change_condition(number, change, content)
    assert store.read().conditions[1].name == "night"


def test_status_page_and_metrics_show_them(world, store) -> None:
    assert world.client.get("/v1/status").json()["conditions"] == world.client.get("/v1/conditions").json()
    known = store.read()
    renamed = known.conditions[0].model_copy(update={"name": "<b>day"})
    store.write(known.model_copy(update={"conditions": (renamed, *known.conditions[1:])}))
    page = world.client.get("/").text
    assert "&lt;b&gt;day" in page and "no known one" in page and "east" in page
    lines = world.client.get("/metrics").text.splitlines()
    for line in (
        "mfmd_conditions_known 3.0",
        'mfmd_condition_current_info{condition="1",name="<b>day"} 1.0',
        'mfmd_camera_condition{camera="east"} 0.0',
        'mfmd_condition_frames{condition="1"} 6.0',
        'mfmd_condition_golden_frames{condition="2"} 0.0',
        'mfmd_condition_best_version{condition="3"} 1.0',
    ):
        assert line in lines, line
    store.path.write_text("{")
    status = world.client.get("/v1/status").json()
    assert status["conditions"]["conditions"] == [] and "mfmd check --repair" in " ".join(status["messages"])
    assert 'mfmd_state_readable{part="conditions"} 0.0' in world.client.get("/metrics").text
