"""When a round starts: a table of what is known and what follows from it."""

import dataclasses

import numpy as np
import pytest
from safetensors.numpy import save_file

from daemon.rounds.effort import round_settings
from daemon.rounds.history import device_uses, schedule_state
from daemon.rounds.schedule import RETRIES, ScheduleState, due
from storage.gate.conditions import Conditions
from storage.gate.drift import Drift
from storage.rounds.device_time import DeviceUse, write_uses
from storage.rounds.records import RoundConditions, RoundScores, RoundSpec
from storage.rounds.verdict import Verdict

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


@pytest.mark.parametrize("change", [{}, {"drifted": True}, {"new_frames": 0}, {"serving": False}, {"failures": 1}])
def test_a_pause_holds_every_round_that_nobody_asked_for_and_says_so(settings, change):
    state = dataclasses.replace(ENOUGH, paused="paused by operator: the camera is moved", **change)
    trigger, following = due(NOW, state, settings(interval_seconds=1))
    assert (trigger, following.held) == (None, "paused")
    assert following.waiting_for == "`mfmd resume`: paused by operator: the camera is moved"


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


@pytest.mark.parametrize(
    ("frames", "new_frames", "passed", "trigger"),
    [
        (20, 20, 60.0, "new_frames"),
        (20, 20, 59.0, None),
        (20, 20, -5.0, "new_frames"),
        (16, 16, 60.0, "new_frames"),
        (15, 15, 60.0, None),
        (32, 12, 1e6, None),
        (36, 16, 1e6, None),
        (40, 20, 1e6, "new_frames"),
        (1000, 199, 1e6, None),
        (1000, 200, 0.0, "new_frames"),
        (100, 50, 60.0, "new_frames"),
    ],
)
def test_a_small_folder_gets_its_rounds_under_the_defaults(settings, frames, new_frames, passed, trigger):
    """Twenty photographs are no two hundred: as many new ones as there were start a round when no more come."""
    default = settings(new_frames=200, min_frames=16)
    assert default.schedule == type(default.schedule)(), "these are the defaults"
    state = dataclasses.replace(ENOUGH, frames=frames, new_frames=new_frames, last_committed=NOW - passed)
    assert due(NOW, state, default)[0] == trigger


def test_status_says_what_a_small_folder_waits_for_and_what_to_change(settings):
    def told(values: dict, **changes: object) -> str:
        small = dataclasses.replace(ENOUGH, frames=20, new_frames=20, last_committed=NOW - 1)
        return due(NOW, dataclasses.replace(small, **changes), settings(new_frames=200, **values))[1].waiting_for

    default = {"min_frames": 16}
    assert told(default) == "60 s without a new frame"
    assert told(default, new_frames=10) == "6 more new frames, then 60 s without a new frame"
    assert told(default, holdout=1).endswith("the next 3 new images are held out; drop more images, or set it lower")
    assert "set buffer.capacity_frames (64)" in told({"min_frames": 65})


@pytest.mark.parametrize(
    ("change", "missing", "told"),
    [
        ({"frames": 12, "holdout": 4}, 2, "2 more frames to train on (recipe.advanced.target_images)"),
        ({"frames": 12, "holdout": 6}, 4, ", but 6 are held out: set buffer.capacity_frames (15) to 16 or more"),
        ({"frames": 14, "holdout": 4}, 0, "nothing: a round starts now"),
        ({"frames": 12, "holdout": 4, "drifted": True}, 0, "a round starts now: BatchNorm statistics of the newest"),
    ],
)
def test_a_recipe_for_few_images_waits_for_as_many_as_it_trains_on(make_settings, drop, change, missing, told):
    settings = make_settings(
        recipe={"name": "mfm_da"},
        source={"images": drop, "labels": drop},
        buffer={"capacity_frames": 15},
        schedule={"enabled": True, "new_frames": 12, "min_frames": 12},
    )
    trigger, decision = due(NOW, dataclasses.replace(ENOUGH, **change), settings)
    assert (trigger is None, decision.frames_missing) == (missing > 0, missing) and told in decision.waiting_for


def test_without_a_hold_out_no_round_can_start_and_status_says_so(make_settings):
    settings = make_settings(buffer={"holdout_fraction": 0.0}, schedule={"new_frames": 20, "min_frames": 10})
    _, decision = due(NOW, dataclasses.replace(ENOUGH, holdout=0), settings)
    assert "buffer.holdout_fraction is 0: set it above 0" in decision.waiting_for


def test_a_round_waits_for_what_is_unsettled_but_never_for_long(settings) -> None:
    wanted = settings()
    busy = dataclasses.replace(ENOUGH, unsettled="a recall to be decided", last_committed=NOW - 1)
    assert due(NOW, busy, wanted)[0] is None
    assert due(NOW, busy, wanted)[1].waiting_for == "a recall to be decided"
    assert due(NOW, dataclasses.replace(busy, new_frames=30), wanted)[0] == "new_frames", (
        "frames come faster than they are seen"
    )
    many = dataclasses.replace(busy, new_frames=90, unseen_since=NOW - 2)
    assert due(NOW, many, wanted)[0] is None, "they were dropped at once"
    assert due(NOW + 28, dataclasses.replace(many, last_committed=NOW + 27), wanted)[0] == "new_frames"
    assert due(NOW + 40, busy, wanted)[0] == "new_frames", "nothing more comes"
    short = dataclasses.replace(busy, new_frames=5)
    assert "15 more new frames" in due(NOW, short, wanted)[1].waiting_for


HOUR = 3600.0


@pytest.mark.parametrize(
    ("minutes", "uses", "expected", "told"),
    [
        (0, [(1, 9000)], 600, ""),
        (30, [], 0, ""),
        (30, [(1, 600), (2, 600)], 600, ""),
        (30, [(1, 600), (2, 660)], 600, "21.0 are used, a round takes about 10.0; the next may start in 22.0 h"),
        (30, [(20, 1200), (2, 660)], 600, "31.0 are used, a round takes about 10.0; the next may start in 4.0 h"),
        (30, [(25, 1800)], 600, ""),
        (30, [(-1, 1500)], 600, "25.0 are used, a round takes about 10.0; the next may start in 25.0 h"),
        (30, [(-25, 1800)], 600, ""),
        (30, [(1, 1800)], 0, "30.0 are used; the next may start in 23.0 h"),
        (5, [], 600, "0.0 are used, and a round takes about 10.0: raise schedule.advanced.minutes_per_day"),
    ],
)
def test_a_round_that_would_exceed_the_budget_of_the_day_waits(settings, minutes, uses, expected, told):
    """`uses`: how many hours ago a round ended, and its seconds."""
    known = tuple(DeviceUse(round=n, ended=NOW - HOUR * ago, seconds=s) for n, (ago, s) in enumerate(uses))
    state = dataclasses.replace(ENOUGH, uses=known, expected={"full": float(expected)})
    trigger, decision = due(NOW, state, settings(advanced={"minutes_per_day": minutes}))
    assert (trigger, decision.held) == ((None, "budget") if told else ("new_frames", "none"))
    assert not told or decision.waiting_for == f"the budget of {minutes} minutes a day: {told}"


def test_used_time_outlives_round_folders_and_kills(store, layout):
    for number in (1, 2, 3):
        spec = {"round": number, "incumbent": 1, "released": 1, "train_frames": (), "holdout_frames": ()}
        folder = store.create(RoundSpec(settings={}, created=1.0, trigger="new_frames", **spec))
        folder.write_scores(RoundScores(status="completed", reason="step budget", steps=1, seconds=10.0 * number))
        folder.write_verdict(Verdict(round=number, decision="rejected", reason="", checks=[], at=5.0))
        folder.enter("rejected")
    assert [use.seconds for use in device_uses(store)] == [10.0, 20.0, 30.0]
    write_uses(layout.device_time, device_uses(store))
    store.prune(1)
    assert [(use.round, use.seconds) for use in device_uses(store)] == [(1, 10.0), (2, 20.0), (3, 30.0)]
    layout.device_time.write_text("{")
    assert [use.round for use in device_uses(store)] == [3], "damage stops nothing"


@pytest.mark.parametrize(
    ("change", "advanced", "effort", "told"),
    [
        ({"drifted": False}, {}, "full", "a round starts now"),
        ({}, {}, "statistics", "BatchNorm statistics of the newest frames alone"),
        ({"drift_size": 3.0}, {}, "statistics", "statistics"),
        ({}, {"statistics_first": False}, "tiny", "within the same condition"),
        ({"statistics": "tried"}, {}, "tiny", "within the same condition"),
        ({"statistics": "tried"}, {"tiny_steps": 0}, "full", "a round starts now"),
        ({"statistics": "tried", "drift_size": 1.2}, {}, "full", "a round starts now"),
        ({"statistics": "tried", "drift_size": None}, {}, "full", "a round starts now"),
        ({"statistics": "tried", "new_frames": 20}, {}, "full", "a round starts now"),
        ({"statistics": "no_batch_norm", "drift_size": 1.2}, {}, "full", "without BatchNorm there are no statistics"),
    ],
)
def test_the_size_of_drift_says_how_large_the_round_is(settings, change, advanced, effort, told):
    drifted = dataclasses.replace(ENOUGH, new_frames=12, drifted=True, drift_size=0.0)
    state = dataclasses.replace(drifted, **{"new_frames": 20, **change} if "drifted" in change else change)
    trigger, decision = due(NOW, state, settings(advanced=advanced))
    assert (trigger, decision.effort) == ("drift" if state.drifted else "new_frames", effort)
    assert told in decision.waiting_for


@pytest.mark.parametrize(
    ("change", "advanced", "held"),
    [
        ({}, {}, True),
        ({"rejected": None}, {}, False),
        ({"new_frames": 50}, {}, False),
        ({"drifted": True}, {}, False),
        ({"rejections": 3}, {}, False),
        ({}, {"new_share": 0.1}, False),
        ({}, {"new_share": 0.0}, False),
    ],
)
def test_a_round_that_would_not_help_is_skipped_and_says_so(settings, change, advanced, held):
    same = dataclasses.replace(ENOUGH, frames=200, new_frames=20, rejected=7, rejections=2)
    trigger, decision = due(NOW, dataclasses.replace(same, **change), settings(advanced=advanced))
    assert (trigger is None, decision.held) == (held, "nothing_new" if held else "none")
    assert not held or decision.waiting_for.startswith("something new: round 7 was rejected")
    assert not held or "only 20 of 200 frames are new; 30 more start a round" in decision.waiting_for


def test_settings_of_a_round_follow_from_its_size(make_settings, store):
    base = make_settings(round={"steps": 300, "max_seconds": 900.0}, schedule={"advanced": {"minutes_per_day": 10}})

    def made(effort, *, manual=False):
        after = round_settings(base, effort, store, manual=manual)
        return after.recipe.name, after.round.steps, after.round.max_seconds, after.round.advanced.average_ratios

    assert made("full") == ("dacs", 300, 600.0, ())
    assert made("full", manual=True) == ("dacs", 300, 900.0, ())
    assert made("tiny") == ("dacs", 100, 600.0, ())
    assert made("statistics") == ("bn_statistics", 16, 600.0, (0.5,))


def test_facts_of_an_alarm_and_of_a_rejected_round_come_from_the_disk(world, store, layout, registry, add_version):
    """Version 2 serves; round 1 was rejected in condition 1 on frames up to 4."""
    add_version(parent=1)
    known = RoundConditions(newest=1, name="day", frames=())

    def judged(number: int, newest: int, effort: str = "full") -> None:
        spec = {"round": number, "incumbent": 2, "released": 1, "train_frames": (newest,), "holdout_frames": ()}
        spec = RoundSpec(settings={}, created=1.0, trigger="drift", effort=effort, conditions=known, **spec)
        folder = store.create(spec)
        folder.write_scores(RoundScores(status="completed", reason="step budget", steps=1, seconds=9.0))
        folder.write_verdict(Verdict(round=number, decision="rejected", reason="", checks=[], at=5.0))
        folder.enter("rejected")

    def facts():
        state = schedule_state(world.buffer.catalog, store, registry)
        return state.rejected, state.rejections, state.drifted, state.statistics, state.new_frames

    def condition(current: int | None) -> None:
        layout.conditions.write_text(Conditions(released=1, threshold=1.0, given=2, current=current).model_dump_json())

    judged(1, 4)
    assert facts() == (None, 0, False, "possible", 4), "no condition is known"
    condition(1)
    assert facts()[:2] == (1, 1)
    for other in (2, None):
        condition(other)
        assert facts()[:2] == (None, 0), "another condition"
    condition(1)
    layout.drift.write_text(Drift(version=2, since=1.0, foreign=(5, 3), size=0.0).model_dump_json())
    assert facts() == (1, 1, True, "no_batch_norm", 4)
    weights = layout.root / "norm.safetensors"
    save_file({"bn.running_mean": np.zeros(2, np.float32)}, weights)
    registry.promote(registry.add(weights, registry.manifest(2), by="import").version, by="operator", reason="test")
    assert facts() == (None, 0, True, "possible", 4), "another version"
    judged(2, 5, "statistics")
    assert facts()[2:] == (True, "tried", 4), "its frames are still new to a round that learns"
    layout.drift.write_text(Drift(version=2, since=1.0, foreign=(8,)).model_dump_json())
    assert facts()[3] == "possible", "another alarm"


@pytest.mark.parametrize(
    ("gate", "action"), [({}, "serve"), ({"shadow_images": 9}, "shadow"), ({"policy": "manual"}, "ask")]
)
def test_what_an_accepted_candidate_does_is_said_beside_the_next_round(make_settings, gate, action):
    made = make_settings(gate=gate, serving={"shadow_fraction": 0.5})
    assert due(NOW, ENOUGH, made)[1].action == action
