"""Probation: with a real registry, buffer and observer's database; the answers of comparisons are drawn numbers."""

import time
from functools import partial

import numpy as np
import pytest

from configs.round import LEFT_OUT
from daemon.gate.frame_facts import COLUMNS, ROWS, FrameFacts
from daemon.gate.loop import GateLoop
from daemon.gate.memory import ConditionMemory
from daemon.gate.probation import ProbationRule
from daemon.rounds.history import schedule_state
from daemon.rounds.schedule import due
from storage import durable
from storage.buffer.observations import Observation, Observations
from storage.canary.records import CanaryState
from storage.durable.record import read_record
from storage.gate.comparisons import ComparisonScores, ComparisonStore
from storage.gate.probation import Probation
from storage.rounds.folder import RoundStore
from storage.rounds.records import ImageCounts, ModelScores
from tests.daemon.gate.compared import model_of, on_labels, scores_of, with_labels
from tests.sections import changed


@pytest.fixture
def served(world, layout, registry, add_version):
    """Version 2, promoted by the gate after version 1, and the rules of the gate."""
    version = add_version(parent=1, promote=False)
    registry.promote(version, by="gate", reason="3 of 4 votes won", round=1, expected=1)
    off = {"advanced": {"enabled": False}}
    settings = changed(world.settings, probation={"frames": 8}, conditions=off, observe={"enabled": True})
    return GateLoop(settings, world.buffer, registry, [ConditionMemory(), ProbationRule()])


@pytest.fixture
def stream(world, drop, write_image, layout):
    """New frames that are observed, all of one look."""

    def come(count: int, versions: tuple[int, ...] = (2,)) -> None:
        first = world.counts.frames
        for number in range(first, first + count):
            write_image(drop / f"{number}.png", number)
        world.until(lambda: world.counts.frames == first + count)
        row = np.ones(3, np.float32)
        with Observations.open(layout.observations, writable=True) as observations:
            shares = len(versions) / (first + count)
            seen = ((frame, versions[int((frame - 1) * shares)]) for frame in range(1, first + count + 1))
            observations.add([
                Observation(frame, version, 1, time.time(), 0.1 * version + 0.01 * (frame % 2), 0.9, row, row, row)
                for frame, version in seen
            ])  # fmt: skip

    return come


def _record(layout) -> Probation:
    return read_record(layout.probation, Probation)


def _answered(gate, layout, new: float, old: float) -> None:
    """Answer the comparison that is waited for, as the observer would."""
    gate.step()
    store = ComparisonStore(layout.comparisons)
    request = store.waiting()
    assert request is not None and request.versions == (2, 1)
    count = len(request.frames)
    store.answer(request.number, scores_of([new] * count, [old] * count))
    gate.step()


def test_a_worse_version_is_rolled_back_with_the_numbers(served, stream, layout, registry) -> None:
    stream(4)  # enough to know how alike neighbours are
    served.step()
    assert _record(layout).stage == "watching"
    stream(4)
    _answered(served, layout, new=0.6, old=0.9)
    assert registry.serving().version == 2, "four frames are too little evidence"
    stream(4)
    _answered(served, layout, new=0.6, old=0.9)
    ref, move = registry.serving(), registry.state().last_move
    assert (ref.version, ref.by, move.event) == (1, "gate", "rolled_back")
    assert "probation: version 2 looks worse than version 1 on 8 of 8 fresh frames" in ref.reason
    assert ref.reason.endswith("; no round for 600 s")
    assert _record(layout).stage == "cooling_down"
    served.step()
    assert registry.serving().version == 1


def test_another_level_of_entropy_under_the_version_before_spreads_no_frames(served, stream, layout) -> None:
    stream(32, versions=(1, 2))
    served.step()
    assert _record(layout).spacing == 1


def test_labels_are_compared_at_once_and_again_when_they_change(served, stream, layout, registry) -> None:
    durable.make_directory(layout.canary)
    durable.write_record(layout.canary / "state.json", CanaryState(images=2, checksum=1))
    stream(4)
    store = ComparisonStore(layout.comparisons)

    def answer(right: int, images: int, new: int = 5) -> None:
        served.step()
        request = store.waiting()
        assert request.canary and request.frames == () and request.versions == (2, 1)
        models = (on_labels([new] * images, [0.8] * images), on_labels([right] * images, [0.7] * images))
        scores = with_labels(*models, [0.0] * images)
        store.answer(request.number, scores if images else scores.model_copy(update={"canary": ()}))
        served.step()

    served.step()
    answer(right=9, images=2)
    assert "2 of 2 canary images" in _record(layout).reason and registry.serving().version == 2
    served.step()
    assert store.waiting() is None, "the same labels are compared once"
    durable.write_record(layout.canary / "state.json", CanaryState(problem="a.png is damaged"))
    answer(right=9, images=0)
    assert _record(layout).canary_losses == (), "labels that are gone do not count"
    stream(4)
    _answered(served, layout, new=0.9, old=0.6)
    durable.write_record(layout.canary / "state.json", CanaryState(images=6, checksum=2))
    answer(right=9, images=6)
    record = _record(layout)
    assert registry.serving().version == 1 and record.stage == "cooling_down" and record.worse == (False,) * 4
    assert "0 of 4 fresh frames" in record.reason and "6 of 6 canary images (IoU -0.485 on average" in record.reason


@pytest.mark.parametrize("weighed", [False, True])
def test_labels_count_by_the_weights_of_their_classes(served, stream, layout, weighed: bool) -> None:
    names = [entry.name for entry in served.settings.classes]
    weights = {names[1]: 0.0} if weighed else {}
    served.settings = changed(served.settings, gate={"advanced": {"class_weights": weights}})
    durable.make_directory(layout.canary)
    durable.write_record(layout.canary / "state.json", CanaryState(images=2, checksum=1))
    stream(4)
    served.step()
    served.step()

    def finds(*right: int) -> ModelScores:
        """A version with so many pixels right of the first two classes; the others are in no image."""
        unseen = [0] * (len(names) - 2)
        wrong = [[10 - n for n in right] + unseen] * 2
        return model_of(0, [0.8] * 2).model_copy(
            update={"canary": ImageCounts(tp=[[*right, *unseen]] * 2, fp=wrong, fn=wrong)}
        )

    store = ComparisonStore(layout.comparisons)
    store.answer(store.waiting().number, with_labels(finds(9, 0), finds(9, 9), [0.0] * 2))
    served.step()
    assert (max(_record(layout).canary_losses) > 0.3) == (not weighed)
    stream(4)
    served.step()
    request = store.waiting()
    scores = scores_of([0.9] * len(request.frames), [0.6] * len(request.frames))
    models = (
        model.model_copy(update={"styled": found.canary})
        for model, found in ((scores.models[0], finds(9, 0)), (scores.models[1], finds(9, 9)))
    )
    store.answer(request.number, scores.model_copy(update={"models": tuple(models)}))
    served.step()
    assert any(_record(layout).worse_styled) == (not weighed)


def test_labels_that_cannot_be_compared_are_asked_for_again(served, stream, layout, registry) -> None:
    durable.make_directory(layout.canary)
    durable.write_record(layout.canary / "state.json", CanaryState(images=6, checksum=1))
    stream(4)
    store = ComparisonStore(layout.comparisons)
    served.step()
    served.step()
    (store.root / "000001" / "request.json").unlink()
    served.step()
    for _ in range(3):
        served.step()
        assert store.waiting().canary
        store.answer(store.waiting().number, ComparisonScores(status="failed", reason="version 1 is damaged"))
        served.step()
    assert _record(layout).stage == "ended"


def test_frames_that_are_left_out_are_no_fresh_frames(served, stream, layout) -> None:
    stream(4)
    served.settings = changed(served.settings, round={"advanced": {"leave_out": LEFT_OUT}})
    served.step()
    stream(4)
    noise = FrameFacts(np.ones((ROWS, COLUMNS, 3)), detail=0.1, likeness=0.1, lines=1.0).numbers()
    with Observations.open(layout.observations, writable=True) as observations:
        observations.add_facts(dict.fromkeys((14, 15), noise))
    served.step()
    assert ComparisonStore(layout.comparisons).waiting() is None
    stream(2)
    served.step()
    assert ComparisonStore(layout.comparisons).waiting().frames == (13, 16, 17, 18)


def test_a_better_version_passes_and_stays(served, stream, layout, registry) -> None:
    stream(4)
    served.step()
    for _ in range(2):
        stream(4)
        _answered(served, layout, new=0.9, old=0.6)
    assert _record(layout).stage == "passed"
    stream(8)
    served.step()
    assert ComparisonStore(layout.comparisons).waiting() is None, "nothing is compared after it"
    assert registry.serving().version == 2


def test_a_kill_between_rollback_and_record_ends_in_the_same_state(served, stream, layout, registry) -> None:
    stream(4)
    served.step()
    registry.roll_back(to=1, by="gate", reason="probation: it was worse", expected=2)
    served.step()
    assert _record(layout).stage == "cooling_down"


def test_the_cool_down_survives_kills_and_jumps_of_the_clock(world, layout, registry, add_version, monkeypatch) -> None:
    add_version(parent=1)
    registry.roll_back(to=1, by="gate", reason="probation: it was worse")
    begun = Probation(stage="cooling_down", version=2, previous=1, since=1.0, after=8)
    layout.probation.write_text(begun.model_dump_json())
    state = partial(schedule_state, world.buffer.catalog, RoundStore(layout.rounds), registry)
    settings = changed(world.settings, schedule={"enabled": True, "new_frames": 8})

    def steps(*moments: float) -> tuple[str | None, str]:
        """Let a new daemon look at these moments of its clock; return what the schedule says then."""
        clock = iter(moments)
        gate = GateLoop(settings, world.buffer, registry, [ProbationRule(lambda: next(clock))])
        for _ in moments:
            gate.step()
        trigger, after = due(1e9, state(), settings)
        return trigger, after.waiting_for

    told = "the cool-down of 600 s after version 2 was rolled back: {} s left"
    assert steps(50.0) == (None, told.format(600))
    assert steps(7000.0, 7100.0, 7105.0) == (None, told.format(500)), "5 s are lost to the kill"
    monkeypatch.setattr(time, "time", lambda: 1e12)
    assert steps(1.0, 400.0) == (None, told.format(101))
    assert steps(5.0, 106.0)[0] == "new_frames"
    assert _record(layout).stage == "rolled_back"


def test_an_operator_who_moves_the_ref_ends_it(served, stream, layout, registry) -> None:
    stream(4)
    served.step()
    registry.roll_back(to=1, by="operator", reason="I do not like it")
    served.step()
    record = _record(layout)
    assert record.stage == "ended" and "operator made version 1 serve" in record.reason


def test_comparisons_that_fail_end_it_and_a_lost_request_is_asked_again(served, stream, layout, registry) -> None:
    stream(4)
    served.step()
    stream(4)
    served.step()
    store = ComparisonStore(layout.comparisons)
    (store.root / "000001" / "request.json").unlink()
    served.step()
    for _ in range(3):
        stream(4)
        served.step()
        store.answer(store.waiting().number, ComparisonScores(status="failed", reason="version 1 is damaged"))
        served.step()
    record = _record(layout)
    assert record.stage == "ended" and "version 1 is damaged" in record.reason
    assert registry.serving().version == 2


def test_without_an_observer_it_ends_at_once_and_says_why(served, layout) -> None:
    served.settings = changed(served.settings, observe={"enabled": False})
    served.step()
    record = _record(layout)
    assert record.stage == "ended" and "observe.enabled is off" in record.reason


def test_a_version_of_an_operator_is_not_on_probation(world, layout, registry, add_version, stream) -> None:
    add_version(parent=1)
    gate = GateLoop(world.settings, world.buffer, registry, [ProbationRule()])
    stream(4)
    gate.step()
    assert not layout.probation.exists()
