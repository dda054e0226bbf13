"""The rule that keeps `conditions.json`: with a real buffer, registry and observer's database."""

import sqlite3
import time
from contextlib import closing

import numpy as np
import pytest

from configs.round import LEFT_OUT
from daemon.gate.frame_choice import choose_frames
from daemon.gate.frame_facts import COLUMNS, ROWS, FrameFacts
from daemon.gate.loop import GateLoop
from daemon.gate.memory import ConditionMemory
from daemon.gate.round_conditions import conditions_of_round
from storage.buffer.observations import Observation, Observations
from storage.directory.upgrade import prepare
from storage.errors import StorageError
from storage.gate.conditions import ConditionStore
from storage.rounds.folder import RoundStore
from storage.rounds.records import RoundSpec
from storage.rounds.verdict import CandidateRuling, ConditionCost, Verdict
from tests.sections import changed

CONDITIONS = {"advanced": {"burst_frames": 4, "reference_frames": 8}, "golden_frames": 2}


def _observe(layout, frames, level: float, released: int = 1, likeness: float = 0.9) -> None:
    rng = np.random.default_rng(1)
    row = np.ones(3, np.float32)
    with Observations.open(layout.observations, writable=True) as observations:
        observations.add([
            Observation(frame, 1, released, time.time(), 0.1, 0.9, row, row, rng.normal(level, 1, 6).astype(np.float32))
            for frame in frames
        ])  # fmt: skip
        facts = FrameFacts(rng.random((ROWS, COLUMNS, 3)), detail=0.1, likeness=likeness, lines=1.0)
        observations.add_facts(dict.fromkeys(frames, facts.numbers()))


@pytest.fixture
def gate(world, layout, registry):
    settings = changed(world.settings, conditions=CONDITIONS)
    return GateLoop(settings, world.buffer, registry, [ConditionMemory()])


def test_the_stream_is_followed_and_golden_frames_are_kept(gate, world, layout, drop, write_image) -> None:
    store = ConditionStore(layout.conditions)
    gate.step()
    assert store.read() is None, "nothing is observed yet"
    _observe(layout, range(1, 9), 0.0)
    gate.step()
    for number in range(20, 26):
        write_image(drop / f"{number}.png", number)
    world.until(lambda: world.counts.frames == 14)
    _observe(layout, range(9, 15), 30.0)
    gate.step()
    known = store.read()
    assert [item.name for item in known.conditions] == ["condition-1", "condition-2"] and known.current == 2
    held = {record.id for record in world.buffer.records(holdout=True)}
    golden = {frame: item.number for item in known.conditions for frame in item.golden}
    assert golden and set(golden) <= held and world.buffer.catalog.kept() == golden
    before = layout.conditions.stat().st_ino
    gate.step()
    assert layout.conditions.stat().st_ino == before, "nothing new, nothing written"


def test_noise_opens_no_condition_and_gives_no_golden_frame(gate, world, layout, drop, write_image) -> None:
    """Nor does it change the condition in force; a person may take it in at any time."""
    for number in range(20, 30):
        write_image(drop / f"{number}.png", number)
    world.until(lambda: world.counts.frames == 18)
    _observe(layout, range(1, 9), 0.0)
    _observe(layout, range(9, 15), 30.0, likeness=0.1)
    _observe(layout, range(15, 19), 0.0, likeness=0.1)
    store = ConditionStore(layout.conditions)
    gate.settings = changed(gate.settings, round={"advanced": {"leave_out": LEFT_OUT}})
    gate.step()
    known = store.read()
    assert known.current == 1 and [item.frames for item in known.conditions] == [8] and max(known.burst) <= 8
    assert all(frame <= 8 for frame in world.buffer.catalog.kept())
    gate.settings = changed(gate.settings, round={"advanced": {"leave_out": ()}})
    gate.step()
    assert [item.frames for item in store.read().conditions] == [12, 6]


@pytest.fixture
def records(gate, world, layout, drop, write_image):
    """Frames 1 to 8 are of condition 1; 9 to 14 are not observed yet."""
    _observe(layout, range(1, 9), 0.0)
    gate.step()
    for number in range(20, 26):
        write_image(drop / f"{number}.png", number)
    world.until(lambda: world.counts.frames == 14)
    return world.buffer.records()


def test_a_round_is_told_which_held_out_frames_are_of_the_newest_condition(gate, layout, records) -> None:
    late = [conditions_of_round(changed(gate.settings, schedule={"new_frames": n}), 1, records) for n in (11, 12)]
    assert late[0] is None, "more than half of the new frames are not observed"
    assert late[1].newest == 1
    _observe(layout, [14], 0.0)
    late = conditions_of_round(changed(gate.settings, schedule={"new_frames": 9}), 1, records)
    assert late is None, "the observer begins with the newest"
    _observe(layout, range(9, 15), 30.0)
    assert conditions_of_round(gate.settings, 1, records) is None, "and then of no known condition"
    gate.step()
    found = conditions_of_round(gate.settings, 1, records)
    known = ConditionStore(layout.conditions).read()
    assert found.newest == known.current == 2
    assert set(found.frames) == {record.id for record in records if record.holdout and record.id > 8}
    (other,) = found.others
    assert (other.number, other.best, other.golden) == (1, 1, known.conditions[0].golden)
    assert conditions_of_round(changed(gate.settings, conditions={"advanced": {"enabled": False}}), 1, records) is None
    layout.conditions.write_text("{")
    assert conditions_of_round(gate.settings, 1, records) is None


@pytest.fixture
def promote(gate, layout, registry, records):
    """Two conditions, and rounds that are promoted in one of them; `won`: others, each with its best version."""
    _observe(layout, range(9, 15), 30.0)
    gate.step()
    found = conditions_of_round(gate.settings, 1, records)

    def promoted(round: int, newest: int, won: tuple[tuple[int, int], ...] = ()) -> int:
        spec = RoundSpec(
            round=round, incumbent=1, released=1, train_frames=(9, 10), holdout_frames=(), settings={}, created=1.0,
            trigger="manual", conditions=found.model_copy(update={"newest": newest}),
        )  # fmt: skip
        cost = {"name": "", "better": True, "detail": "3 of 3 votes won"}
        costs = [ConditionCost(number=number, version=best, **cost) for number, best in won]
        ruling = CandidateRuling(name="student", decision="accepted", reason="", passed=(), failed=(), elsewhere=costs)
        rulings = (ruling.model_copy(update={"name": "teacher", "elsewhere": ()}), ruling)
        verdict = Verdict(round=round, decision="accepted", reason="good", checks=[], at=1.0, candidate="student")
        RoundStore(layout.rounds).create(spec).write_verdict(verdict.model_copy(update={"candidates": rulings}))
        manifest = registry.manifest(1).model_copy(update={"parent": 1, "origin": "round", "round": round})
        version = registry.add(registry.weights_path(1), manifest, by="gate").version
        registry.promote(version, by="gate", reason="good", round=round)
        gate.step()
        return version

    return promoted


def test_a_promoted_version_is_best_in_its_condition_and_where_it_won_against_none_made_there(
    gate, layout, registry, promote
) -> None:
    store = ConditionStore(layout.conditions)
    first = promote(1, newest=2, won=((1, 1),))
    known = store.read().conditions
    assert [(item.best, item.made) for item in known] == [(first, None), (first, first)]
    assert [item.best_reason for item in known] == ["3 of 3 votes won", "good"]
    again = promote(2, newest=1, won=((2, first),))
    known = store.read().conditions
    assert [item.best for item in known] == [again, first], "votes displace no version that was made there"
    third = promote(3, newest=1)
    day = store.read().conditions[0]
    assert (day.best, day.made) == (third, third)
    registry.roll_back(to=None, by="operator", reason="")
    gate.step()
    day = store.read().conditions[0]
    assert (day.best, day.made) == (again, again), "a rollback brings the version back that was made there before"


def test_a_round_leaves_no_new_condition_out_that_the_gate_has_not_opened_yet(
    gate, world, layout, drop, write_image
) -> None:
    _observe(layout, range(1, 9), 0.0)
    gate.step()
    for number in range(20, 26):
        write_image(drop / f"{number}.png", number)
    world.until(lambda: world.counts.frames == 14)
    settings = changed(gate.settings, round={"advanced": {"leave_out": ("far",)}})
    records = world.buffer.records()
    _observe(layout, range(9, 15), 30.0)
    assert choose_frames(records, world.buffer, settings, 1, manual=False) == (records, {})
    _observe(layout, range(9, 13), 0.0)
    assert choose_frames(records, world.buffer, settings, 1, manual=True)[1] == {"far": (13, 14)}


def test_another_released_model_starts_again(gate, layout, registry, add_version, world) -> None:
    _observe(layout, range(1, 9), 0.0)
    gate.step()
    version = add_version()
    gate.step()
    assert ConditionStore(layout.conditions).read().released == 1, "no frame is observed with its encoder yet"
    _observe(layout, range(1, 9), 5.0, released=version)
    gate.step()
    assert ConditionStore(layout.conditions).read().released == version


def test_a_damaged_file_is_an_error_that_is_not_written_over(gate, layout) -> None:
    _observe(layout, range(1, 9), 0.0)
    layout.conditions.write_text("{")
    with pytest.raises(StorageError, match="mfmd check --repair"):
        gate.step()
    assert layout.conditions.read_text() == "{"


def test_a_lost_file_is_built_again_with_the_versions_that_the_history_names(
    gate, world, layout, drop, write_image, registry, add_version
) -> None:
    """As after `mfmd check --repair`; another daemon looks, which remembers nothing."""
    for number in range(20, 26):
        write_image(drop / f"{number}.png", number)
    world.until(lambda: world.counts.frames == 14)
    _observe(layout, range(1, 9), 0.0)
    _observe(layout, range(9, 15), 30.0)
    gate.step()
    spec = RoundSpec(
        round=1, incumbent=1, released=1, train_frames=(9, 10, 11), holdout_frames=(12, 13, 14), settings={},
        created=1.0, trigger="manual",
    )  # fmt: skip
    RoundStore(layout.rounds).create(spec)
    registry.promote(add_version(parent=1, promote=False), by="gate", reason="better at night", round=1)
    gate.step()
    before = ConditionStore(layout.conditions).read()
    assert [item.best for item in before.conditions] == [1, 2]
    layout.conditions.unlink()
    GateLoop(gate.settings, world.buffer, registry, [ConditionMemory()]).step()
    after = ConditionStore(layout.conditions).read()
    for one, other in zip(before.conditions, after.conditions, strict=True):
        assert (one.best, one.best_reason, one.golden, one.centroids) == (
            other.best, other.best_reason, other.golden, other.centroids,
        )  # fmt: skip
    assert (after.current, after.cameras) == (before.current, before.cameras)


def test_observations_of_an_earlier_mfmd_are_upgraded_at_the_start(gate, layout) -> None:
    """Also where no observer runs: else every step would fail."""
    with closing(sqlite3.connect(layout.observations)) as connection:
        connection.execute("CREATE TABLE observations (frame INTEGER PRIMARY KEY, released INTEGER NOT NULL)")
        connection.execute("PRAGMA user_version = 1")
    with pytest.raises(StorageError, match="format 1"):
        gate.step()
    prepare(layout)
    gate.step()
    _observe(layout, range(1, 9), 0.0)
    gate.step()
    assert ConditionStore(layout.conditions).read() is not None


def test_it_can_be_turned_off(gate, layout) -> None:
    gate.settings = changed(gate.settings, conditions={"advanced": {"enabled": False}})
    _observe(layout, range(1, 9), 0.0)
    gate.step()
    assert not layout.conditions.exists()
