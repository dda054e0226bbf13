"""When a round starts: a table of what is known and what follows from it."""

import dataclasses

import pytest

from daemon.rounds.schedule import RETRIES, ScheduleState, due

NOW = 10_000.0
ENOUGH = ScheduleState(frames=50, holdout=5, new_frames=20, last_ended=NOW - 100, failures=0, serving=True)


@pytest.fixture
def settings(make_settings):
    def make(**schedule):
        values = {"enabled": True, "new_frames": 20, "min_frames": 10, **schedule}
        return make_settings(schedule=values, gate={"advanced": {"min_holdout": 4}})

    return make


@pytest.mark.parametrize(
    ("change", "schedule", "trigger"),
    [
        ({}, {}, "new_frames"),
        ({"new_frames": 19}, {}, None),
        ({"last_ended": None}, {}, "new_frames"),
        ({"serving": False}, {}, None),
        ({"frames": 9}, {}, None),
        ({"holdout": 3}, {}, None),
        ({}, {"enabled": False}, None),
        ({"new_frames": 1}, {"interval_seconds": 100}, "interval"),
        ({"new_frames": 1}, {"interval_seconds": 101}, None),
        ({"new_frames": 0}, {"interval_seconds": 1}, None),
        ({"new_frames": 1, "last_ended": None}, {"interval_seconds": 100}, "interval"),
        ({"failures": 1, "last_ended": NOW - 29}, {}, None),
        ({"failures": 1, "last_ended": NOW - 30}, {}, "new_frames"),
        ({"failures": 3, "last_ended": NOW - 119}, {}, None),
        ({"failures": 3, "last_ended": NOW - 121}, {}, "new_frames"),
        ({"failures": 99, "last_ended": NOW - 3601}, {}, "new_frames"),
    ],
)
def test_decision(settings, change, schedule, trigger):
    assert due(NOW, dataclasses.replace(ENOUGH, **change), settings(**schedule))[0] == trigger


def test_what_is_missing_is_said(settings):
    state = dataclasses.replace(ENOUGH, new_frames=13)
    _, decision = due(NOW, state, settings())
    assert (decision.frames_missing, decision.waiting_for) == (7, "7 more new frames")
    _, decision = due(NOW, dataclasses.replace(state, frames=2, new_frames=2), settings())
    assert (decision.frames_missing, decision.waiting_for) == (18, "8 more frames (schedule.min_frames)")
    assert "mfmd pretrain" in due(NOW, dataclasses.replace(state, serving=False), settings())[1].waiting_for
    assert "held-out" in due(NOW, dataclasses.replace(state, holdout=1), settings())[1].waiting_for


def test_after_failures_the_next_attempt_has_a_time(settings):
    _, decision = due(NOW, dataclasses.replace(ENOUGH, failures=2, last_ended=NOW), settings())
    assert decision.not_before == NOW + 60
    assert RETRIES.delay(1000) == 3600


def test_a_round_that_ended_under_a_clock_that_was_set_back_holds_nothing_up(settings):
    ahead = dataclasses.replace(ENOUGH, last_ended=NOW + 365 * 86400.0)
    trigger, decision = due(NOW, dataclasses.replace(ahead, failures=2), settings())
    assert (trigger, decision.not_before) == ("new_frames", None)
    waiting = dataclasses.replace(ahead, new_frames=1)
    assert due(NOW, waiting, settings(interval_seconds=600.0))[0] == "interval"
