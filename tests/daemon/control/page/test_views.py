"""Views of the page: files, events, the timeline, and what they show of an empty or damaged state."""

import re

import pytest

from daemon.control.page.timeline import WIDTH, draw, moments
from daemon.rounds.history import RoundSummary
from storage.gate.drift import Drift
from storage.registry.manifest import HistoryEvent
from storage.rounds.records import Progress
from tests.daemon.control.control_world import suggestion


def test_files_of_the_page_are_kept_for_ever_under_an_address_of_their_content(page):
    text = page.client.get("/").text
    files = re.findall(r'(?:src|href)="(/static/[^"]+)"', text)
    assert {name.partition("?")[0] for name in files} >= {"/static/htmx.min.js", "/static/page.js", "/static/page.css"}
    for name in files:
        answer = page.client.get(name)
        assert answer.status_code == 200 and "immutable" in answer.headers["Cache-Control"], name
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
    for name in ("x.js", "..%2fview.py", "LICENSES.txt", "%2e%2e/view.py"):
        assert page.client.get(f"/static/{name}").status_code == 404, name


def test_events_name_what_changed(page, registry):
    with page.client.stream("GET", "/events", timeout=20) as stream:
        assert stream.headers["Content-Type"].startswith("text/event-stream")
        lines = (line.removeprefix("event: ") for line in stream.iter_lines() if line.startswith("event: "))
        assert {next(lines), next(lines)} == {"status", "history"}, "the state as it is"
        assert page.send().status_code == 303
        assert {next(lines), next(lines)} == {"status", "history"}, "after a rollback"


def test_a_stream_of_events_does_not_hold_the_stop_up(page):
    with page.client.stream("GET", "/events", timeout=20) as stream:
        lines = stream.iter_lines()
        next(lines)
        page.server.stop()
        assert not page.server.alive
        list(lines)  # it ends; one that is cut off raises


def test_the_curve_is_of_the_newest_round_and_short(page, layout, add_version):
    assert page.client.get("/curve").json() == {"title": "", "x": [], "series": []}
    folder = suggestion(layout, add_version(3, promote=False))
    for step in range(1, 1001):
        folder.append_progress(Progress(at=float(step), phase="training", step=step, steps=1000, losses={"mfm": 1.0}))
    curve = page.client.get("/curve").json()
    assert curve["title"] == "Loss of round 1" and 200 < len(curve["x"]) <= 300 and curve["x"][-1] == 1000
    assert [line["name"] for line in curve["series"]] == ["mfm"] and len(curve["series"][0]["y"]) == len(curve["x"])
    assert page.client.get("/rounds/1/curve").json() == curve
    assert page.client.get("/rounds/9/curve").status_code == 404


def test_the_timeline_has_each_kind_in_its_lane_in_order():
    events = [
        HistoryEvent(at=10.0, event="promoted", version=2, previous=1, by="gate", reason="r"),
        HistoryEvent(at=20.0, event="rejected", version=None, previous=2, round=5, by="gate", reason="r"),
        HistoryEvent(at=30.0, event="rolled_back", version=1, previous=2, by="probation", reason="r"),
        HistoryEvent(at=35.0, event="pinned", version=1, by="operator"),
        HistoryEvent(at=40.0, event="recalled", version=2, previous=1, by="gate", reason="r"),
    ]
    rounds = [RoundSummary(round=5, result="rejected", reason="", trigger="drift", created=15.0)]
    drift = Drift(version=1, since=0.0, last_alarm=14.0, reason="foreign")
    found = moments(events, rounds, drift)
    assert [moment.at for moment in found] == sorted((moment.at for moment in found), reverse=True)
    drawn = draw(found)
    assert [(mark.moment.kind, mark.moment.href) for mark in drawn.marks] == [
        ("promoted", "/versions/2"), ("drift", ""), ("drift", "/rounds/5"), ("round", "/rounds/5"),
        ("judged", "/rounds/5"), ("rolled_back", "/versions/1"), ("recalled", "/versions/2"),
    ]  # fmt: skip
    assert all(0 <= mark.x <= WIDTH and 0 <= mark.y <= drawn.height for mark in drawn.marks)
    assert draw([]).marks == () and draw(found[:1]).marks


def test_a_long_history_has_pages(page, registry):
    for number in range(150):
        registry.record(
            HistoryEvent(at=float(number), event="rejected", version=None, by="gate", reason=f"no {number}")
        )
    first = page.client.get("/versions").text
    assert "/versions?skip=100" in first and "Later" not in first
    second = page.client.get("/versions?skip=100").text
    assert "/versions?skip=0" in second and "Earlier" not in second and "no 0<" in second


@pytest.mark.parametrize(
    ("path", "words"), [("/versions", "manifest.json"), ("/versions/1", "manifest.json"), ("/", "version 3</a>")]
)
def test_a_damaged_version_is_said_and_the_views_stay(page, layout, path, words):
    (layout.checkpoints / "versions" / "000001" / "manifest.json").write_text("{")
    answer = page.client.get(path)
    assert answer.status_code == 200 and words in answer.text
