"""Drift alarms: the pure detector on drawn series, the rule on a real observer's database, the schedule's trigger."""

import json
import time
from dataclasses import replace

import numpy as np
import pytest

from daemon.gate.drift import LEARN, DriftRule, looked, scores_of, size_of
from daemon.gate.loop import GateLoop
from daemon.rounds.history import schedule_state
from daemon.rounds.schedule import ScheduleState, due
from storage.buffer.observations import Observation, Observations
from storage.durable.record import read_record
from storage.gate.conditions import Condition, Conditions
from storage.gate.drift import Drift, drift_state
from storage.gate.recall import Recall
from storage.rounds.folder import RoundStore
from tests.sections import changed


def _run(values, per_100k: float = 1.0) -> Drift:
    state = Drift(version=1, since=0.0)
    for frame, value in enumerate(values, 1):
        state = looked(state, frame, [float(value)], per_100k, 7.0)
    return state


def _values(rng, count: int, mean: float = 0.4) -> np.ndarray:
    return np.clip(rng.normal(mean, 0.05, count), 0.0, 1.0)


def test_what_stays_the_same_raises_no_alarm() -> None:
    rng = np.random.default_rng(1)
    assert sum(_run(_values(rng, 1500)).alarms for _ in range(8)) == 0


def test_a_change_is_found_and_its_frames_are_kept() -> None:
    rng = np.random.default_rng(2)
    values = np.concatenate([_values(rng, 600), _values(rng, 60, mean=0.55)])
    state = _run(values)
    assert state.alarms >= 1 and state.last_alarm == 7.0 and "the stream changed" in state.reason
    assert len(state.foreign) == 8 and min(state.foreign) > 600


def test_the_frames_of_a_backlog_count_newest_groups_first() -> None:
    rng = np.random.default_rng(6)
    values = np.concatenate([_values(rng, 400), _values(rng, 80, mean=0.55)])
    frames = [*range(400), *(frame for first in range(472, 399, -8) for frame in range(first, first + 8))]
    state = Drift(version=1, since=0.0)
    for frame in frames:
        state = looked(state, frame, [float(values[frame])], 1.0, 7.0)
    assert state.alarms == 1 and sum(frame >= 400 for frame in state.foreign) >= 7 and state.after > 400


def test_correlated_frames_are_looked_at_farther_apart() -> None:
    rng = np.random.default_rng(3)
    series = [0.4]
    for step in rng.normal(size=4000):
        series.append(0.4 + 0.9 * (series[-1] - 0.4) + 0.02 * step)
    assert _run(series[: LEARN + 1]).spacing >= 8
    assert _run(series).alarms == 0


def test_a_constant_score_and_numbers_that_are_none_are_no_evidence() -> None:
    assert _run([0.3] * 1500).alarms == 0
    state = _run([float("nan")] * 50)
    assert state.stage == "learning" and not state.learned


def test_a_restart_changes_nothing() -> None:
    values = _values(np.random.default_rng(4), 300)
    once = _run(values)
    state = Drift(version=1, since=0.0)
    for frame, value in enumerate(values, 1):
        state = Drift.model_validate_json(looked(state, frame, [float(value)], 1.0, 7.0).model_dump_json())
    assert state == once


def test_scores_of_a_frame() -> None:
    row, style = np.ones(3, np.float32), np.array([3.0, 4.0], np.float32)
    seen = Observation(1, 1, 1, 0.0, np.log(3) / 2, 0.9, row, row, style)
    home = Condition(number=1, name="day", opened=0.0, last_seen=0.0, centroids=((0.0, 0.0),))
    known = Conditions(released=1, threshold=2.5, given=1, conditions=(home,))
    assert scores_of(seen, known, 3) == pytest.approx((0.5, 0.5))
    assert scores_of(seen, None, 3) == pytest.approx((0.5, 0.5))
    assert scores_of(seen, known.model_copy(update={"released": 2}), 3)[1] == 0.5


def test_the_size_of_a_change_is_the_distance_between_conditions() -> None:
    places = {1: (0.0, 0.0), 2: (3.0, 4.0)}
    facts = {"name": "day", "opened": 0.0, "last_seen": 0.0}
    items = tuple(Condition(number=number, centroids=(at,), **facts) for number, at in places.items())
    known = Conditions(released=1, threshold=2.5, given=2, conditions=items, current=2)
    assert (size_of(known, 2), size_of(known, 1), size_of(known, None)) == (0.0, 2.0, None)
    assert size_of(known.model_copy(update={"current": None}), 1) is None and size_of(None, 1) is None


@pytest.fixture
def gate(world, layout, registry):
    settings = changed(world.settings, conditions={"advanced": {"enabled": False}})
    return GateLoop(settings, world.buffer, registry, [DriftRule()])


def test_it_waits_until_a_condition_gives_the_style_its_scale(gate, layout) -> None:
    gate.settings = changed(gate.settings, conditions={"advanced": {"enabled": True}})
    _observe(layout, range(1, 9), [0.5] * 8)
    gate.step()
    assert read_record(layout.drift, Drift) is None
    home = Condition(number=1, name="day", opened=0.0, last_seen=0.0, centroids=((0.0, 0.0, 0.0),))
    known = Conditions(released=1, threshold=2.5, given=1, conditions=(home,))
    layout.conditions.write_text(known.model_dump_json())
    gate.step()
    assert len(read_record(layout.drift, Drift).learned) == 8, "the frames that waited count"


def _observe(layout, frames, entropy, version: int = 1) -> None:
    row = np.ones(3, np.float32)
    with Observations.open(layout.observations, writable=True) as observations:
        observations.add([
            Observation(frame, version, 1, time.time(), value, 0.9, row, row, row)
            for frame, value in zip(frames, entropy, strict=True)
        ])  # fmt: skip


def test_a_frame_that_the_observer_sees_late_is_looked_at_once(gate, layout, world) -> None:
    _observe(layout, [7, 8], [0.5, 0.5])
    gate.step()
    assert read_record(layout.drift, Drift).missed == (1, 2, 3, 4, 5, 6)
    _observe(layout, [2, 5], [0.5, 0.5])
    gate.step()
    gate.step()
    state = read_record(layout.drift, Drift)
    assert (state.learned_frames, state.missed, state.upto) == ((7, 8, 2, 5), (1, 3, 4, 6), 8)
    old = state.model_dump(exclude={"learned_frames", "missed", "after"})
    layout.drift.write_text(json.dumps(old))
    gate.step()
    state = read_record(layout.drift, Drift)
    assert (state.learned_frames, state.upto) == ((), 8), "an earlier mfmd did not say which frames they were"


@pytest.mark.parametrize(
    ("record", "wanted", "observed", "state"),
    [
        (None, False, True, "off"),
        (None, True, False, "no_observer"),
        (None, True, True, "waiting"),
        (Drift(version=1, since=0.0), True, True, "learning"),
        (Drift(version=1, since=0.0, stage="watching"), True, True, "watching"),
        (Drift(version=1, since=0.0, stage="watching"), True, False, "no_observer"),
    ],
)
def test_where_the_alarm_stands_has_a_name(record, wanted: bool, observed: bool, state: str) -> None:
    assert drift_state(record, wanted=wanted, observed=observed) == state


def test_the_rule_follows_the_version_that_serves(gate, layout, registry, add_version) -> None:
    rng = np.random.default_rng(5)
    gate.step()
    assert read_record(layout.drift, Drift) is None, "nothing is observed yet"
    _observe(layout, range(1, 501), rng.normal(0.6, 0.05, 500))
    gate.step()
    assert read_record(layout.drift, Drift).stage == "watching"
    _observe(layout, range(501, 561), rng.normal(1.0, 0.05, 60))
    gate.step()
    state = read_record(layout.drift, Drift)
    assert state.alarms == 1 and min(state.foreign) > 500
    version = add_version(parent=1)
    _observe(layout, range(561, 570), rng.normal(0.2, 0.05, 9), version)
    gate.step()
    after = read_record(layout.drift, Drift)
    assert (after.version, after.stage, after.alarms) == (version, "learning", 1), "scores of another version"
    assert after.foreign == state.foreign, "people still see what it was"


def test_an_alarm_starts_a_round_once_there_are_new_frames(world, layout, registry) -> None:
    facts = ScheduleState(frames=500, holdout=50, new_frames=0, last_ended=None, failures=0, serving=True, drifted=True)
    settings = changed(
        world.settings,
        schedule={"enabled": True, "new_frames": 1000, "min_frames": 24, "interval_seconds": 0},
        buffer={"capacity_frames": 2000},
    )

    def trigger(**now):
        return due(1e9, replace(facts, last_committed=1e9 - 1.0, **now), settings)[0]

    assert trigger(new_frames=23) is None
    assert trigger(new_frames=24) == "drift"
    assert trigger(new_frames=24, drifted=False) is None
    store = RoundStore(layout.rounds)
    assert not schedule_state(world.buffer.catalog, store, registry).drifted
    layout.drift.write_text(Drift(version=1, since=0.0, alarms=1, foreign=(3, 9)).model_dump_json())
    assert schedule_state(world.buffer.catalog, store, registry).drifted
    layout.drift.write_text("{")
    assert not schedule_state(world.buffer.catalog, store, registry).drifted


def test_a_round_waits_for_the_observer_and_for_a_recall(world, layout, registry) -> None:
    store = RoundStore(layout.rounds)

    def unsettled() -> str:
        return schedule_state(world.buffer.catalog, store, registry).unsettled

    assert unsettled() == "", "nothing was observed yet: there may be no observer"
    _observe(layout, [7, 8], [0.5, 0.5])
    assert "6 new frames" in unsettled(), "the observer begins with the newest"
    _observe(layout, range(5, 7), [0.5] * 2)
    assert unsettled() == "", "4 frames behind is near enough"
    layout.recall.write_text(Recall(stage="asked", comparison=1).model_dump_json())
    assert unsettled() == "a recall to be decided"
    layout.recall.write_text("{")
    assert unsettled() == "", "damage stops no round"
