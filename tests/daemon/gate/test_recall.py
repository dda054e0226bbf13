"""Recall: a stream that returns brings its version back; real registry, buffer, observer's database and rules.

The answers of comparisons are drawn numbers, written as the observer writes them.
"""

import time
from collections.abc import Sequence

import numpy as np
import pytest

from configs.round import LEFT_OUT
from daemon.gate.frame_facts import COLUMNS, ROWS, FrameFacts
from daemon.gate.loop import GateLoop
from daemon.gate.memory import ConditionMemory
from daemon.gate.moves import best_versions
from daemon.gate.recall import RecallRule
from daemon.rounds.history import schedule_state
from storage.buffer.observations import Observation, Observations
from storage.durable.record import read_record
from storage.gate.comparisons import ComparisonScores, ComparisonStore
from storage.gate.conditions import ConditionStore
from storage.gate.pause import pause, resume
from storage.gate.recall import Recall
from storage.rounds.folder import RoundStore
from storage.rounds.records import ImageCounts, ModelScores, RoundSpec
from tests.sections import changed

CONDITIONS = {"advanced": {"burst_frames": 4, "reference_frames": 8}, "golden_frames": 2}


WORLDS = {"day": 0.0, "night": 40.0, "fog": 80.0}


def drawn_model(version: int, confidence: float, frames: int, source: int | None = None) -> ModelScores:
    c = confidence
    gram = [[c * c + (1 - c) ** 2, 2 * c * (1 - c)], [2 * c * (1 - c), c * c + (1 - c) ** 2]]
    counts = ImageCounts(tp=[[source]] * 8, fp=[[3]] * 8, fn=[[3]] * 8) if source else None
    steady = {"flip_consistency": [0.9] * frames, "dropout_disagreement": [0.1] * frames}
    return ModelScores(version=version, finite=True, gram=[gram] * frames, source=counts, **steady)


def drawn_scores(
    serving: float, best: float, frames: int = 12, source: tuple[int, int] | None = None
) -> ComparisonScores:
    labelled = source or (None, None)
    models = (drawn_model(2, serving, frames, labelled[0]), drawn_model(1, best, frames, labelled[1]))
    return ComparisonScores(status="completed", frames=tuple(range(frames)), models=models)


class Stream:
    """The parts around the rules, driven by hand."""

    def __init__(self, world, layout, registry, drop, write_image) -> None:
        self.world, self.layout, self.registry = world, layout, registry
        self.drop, self.write_image = drop, write_image
        settings = changed(world.settings, conditions=CONDITIONS, recall={"dwell_seconds": 0.0})
        self.gate = GateLoop(settings, world.buffer, registry, [ConditionMemory(), RecallRule()])
        self.store = ComparisonStore(layout.comparisons)
        self.rng = np.random.default_rng(0)
        self.number = 100

    def come(self, look: str, count: int = 4, light: Sequence[float] = ()) -> None:
        """Let new observed frames of a world come, and the rules look at them; `light`: the brightness of each."""
        before = {record.id for record in self.world.buffer.records()}
        for _ in range(count):
            self.number += 1
            self.write_image(self.drop / f"{self.number}.png", self.number)
        self.world.until(lambda: self.world.counts.frames == len(before) + count)
        new = sorted({record.id for record in self.world.buffer.records()} - before)
        with Observations.open(self.layout.observations, writable=True) as observations:
            lit = {frame: _facts(level) for frame, level in zip(new, light, strict=False)}
            observations.add_facts({frame: facts.numbers() for frame, facts in lit.items()})
        self.observe(new, look)
        self.gate.step()

    def observe(self, frames, look: str) -> None:
        """Observe frames as frames of a world."""
        row = np.ones(3, np.float32)
        styles = {frame: self.rng.normal(WORLDS[look], 1, 6).astype(np.float32) for frame in frames}
        with Observations.open(self.layout.observations, writable=True) as observations:
            observations.add([
                Observation(frame, 1, 1, time.time(), 0.1, 0.9, row, row, style) for frame, style in styles.items()
            ])  # fmt: skip

    def answer(self, scores: ComparisonScores) -> None:
        """Answer what waits, and let the rules look."""
        request = self.store.waiting()
        assert request is not None
        models = zip(request.versions, scores.models, strict=True)
        numbered = tuple(model.model_copy(update={"version": version}) for version, model in models)
        self.store.answer(request.number, scores.model_copy(update={"models": numbered}))
        self.gate.step()  # the recall
        self.gate.step()  # what follows from it

    @property
    def record(self) -> Recall:
        """What recall.json says."""
        return read_record(self.layout.recall, Recall) or Recall()

    @property
    def unsettled(self) -> str:
        """What a round waits for."""
        return schedule_state(self.world.buffer.catalog, RoundStore(self.layout.rounds), self.registry).unsettled

    @property
    def best(self) -> dict[str, int | None]:
        """The best version of each condition."""
        return {item.name: item.best for item in ConditionStore(self.layout.conditions).read().conditions}


@pytest.fixture
def stream(world, layout, registry, drop, write_image, add_version):
    """Day was seen under version 1; night came, and version 2 was promoted there by round 1."""
    made = Stream(world, layout, registry, drop, write_image)
    made.observe({record.id for record in world.buffer.records()}, "day")
    made.gate.step()
    made.come("night")
    version = add_version(parent=1, promote=False)
    _round(layout, world.buffer.records())
    registry.promote(version, by="gate", reason="3 of 4 votes won", round=1, expected=1)
    made.gate.step()
    return made


def _round(layout, records) -> None:
    train, held = (tuple(item.id for item in records if item.holdout is slice_) for slice_ in (False, True))
    spec = RoundSpec(
        round=1, incumbent=1, released=1, train_frames=train, holdout_frames=held, settings={}, created=1.0,
        trigger="manual",
    )  # fmt: skip
    RoundStore(layout.rounds).create(spec)


def test_a_promotion_is_best_in_the_condition_of_its_rounds_newest_frames(stream) -> None:
    assert stream.best == {"condition-1": 1, "condition-2": 2}


def test_day_after_night_brings_the_version_of_day_back_and_night_that_of_night(stream, registry) -> None:
    stream.come("day")
    request = stream.store.waiting()
    assert request.versions == (2, 1) and stream.record.stage == "asked"
    newest = [record.id for record in stream.world.buffer.records()][-4:]
    golden = ConditionStore(stream.layout.conditions).read().condition(1).golden
    assert set(request.frames) == {*newest, *golden}, "golden ones and those since the condition is back"
    stream.answer(drawn_scores(0.6, 0.9))
    ref, move = registry.serving(), registry.state().last_move
    assert (ref.version, ref.by, move.event, stream.record.stage) == (1, "gate", "recalled", "recalled")
    assert "condition-1: version 1 is better on 12 of 12 frames by the nuclear norm" in ref.reason
    assert 2 not in registry.state().rolled_back and registry.ref("previous").version == 2
    stream.come("night")
    assert stream.store.waiting().versions == (1, 2)
    stream.answer(drawn_scores(0.6, 0.9))
    assert registry.serving().version == 2
    assert stream.best == {"condition-1": 1, "condition-2": 2}


def test_a_pause_keeps_the_question_and_its_answer_for_later(stream, registry) -> None:
    stream.come("day")
    pause(stream.layout, by="operator", reason="the camera is moved")
    stream.answer(drawn_scores(0.6, 0.9))
    assert (registry.serving().version, stream.record.stage) == (2, "asked")
    stream.come("day")
    again = GateLoop(stream.gate.settings, stream.world.buffer, registry, [ConditionMemory(), RecallRule()])
    again.step()
    assert (registry.serving().version, stream.store.waiting()) == (2, None), "a restart asks nothing either"
    resume(stream.layout, by="operator", reason="it stands")
    again.step()
    assert (registry.serving().version, stream.record.stage) == (1, "recalled")


def test_what_an_operator_serves_in_a_pause_stays_afterwards(stream, registry) -> None:
    stream.come("day")
    pause(stream.layout, by="operator", reason="the camera is moved")
    registry.roll_back(to=1, by="operator", reason="by hand")
    registry.promote(2, by="operator", reason="by hand")
    stream.gate.step()
    assert stream.record.held == 1, "the condition of the move, not that of the end of the pause"
    resume(stream.layout, by="operator", reason="it stands")
    stream.gate.step()
    assert stream.record.stage != "recalled" and registry.serving().version == 2


def _facts(light: float) -> FrameFacts:
    cells = light * np.random.default_rng(3).uniform(0.5, 1.0, (ROWS, COLUMNS, 3))
    return FrameFacts(cells, detail=0.1, likeness=0.9, lines=1.0)


def test_a_ramp_of_brightness_recalls_nothing_until_the_light_stands_still(stream, registry) -> None:
    """Frames of a ramp are between two conditions, whatever they look like."""
    stream.gate.settings = changed(stream.gate.settings, round={"advanced": {"leave_out": LEFT_OUT}})
    golden = ConditionStore(stream.layout.conditions).read().condition(1).golden
    ramp = stream.world.counts.committed_total
    stream.come("day", 16, light=np.geomspace(0.2, 0.8, 16))
    known = ConditionStore(stream.layout.conditions).read()
    assert stream.store.waiting() is None and known.current == 2 and known.condition(1).golden == golden
    stream.come("day", 8, light=[0.8] * 8)
    frames = stream.store.waiting().frames
    assert not {*range(ramp + 1, ramp + 17)} & {*frames} and len({*frames} - {*golden}) >= 3
    stream.answer(drawn_scores(0.6, 0.9))
    assert registry.serving().version == 1


def test_a_ramp_recalls_where_a_person_leaves_nothing_out(stream) -> None:
    stream.come("day", 16, light=np.geomspace(0.2, 0.8, 16))
    assert stream.store.waiting() is not None


def test_a_new_condition_asks_every_good_version_once(stream, registry, add_version) -> None:
    stream.come("fog")
    assert stream.store.waiting().versions == (2, 1), "the released one too: source-free, nobody knows what it saw"
    stream.answer(drawn_scores(0.6, 0.9))
    assert stream.best == {"condition-1": 1, "condition-2": 2, "condition-3": 1} and registry.serving().version == 1
    assert 3 in stream.record.considered
    stream.come("fog")
    assert stream.store.waiting() is None, "version 1 is best there now, and serves"


@pytest.mark.parametrize(("weighed", "serves"), [(False, 2), (True, 1)])
def test_labelled_images_count_by_the_weights_of_their_classes(stream, registry, weighed: bool, serves: int) -> None:
    """The norm is for version 1; labels are against it in the first class alone, and there is a second one."""
    names = [entry.name for entry in stream.gate.settings.classes]
    weights = {names[0]: 0.0} if weighed else {}
    stream.gate.settings = changed(stream.gate.settings, gate={"advanced": {"class_weights": weights}})
    stream.come("fog")
    scores, models = drawn_scores(0.6, 0.9), []
    for model, right in zip(scores.models, ((9, 9), (1, 9)), strict=True):
        hits, rest = [[*right, *[0] * (len(names) - 2)]] * 8, [[1, 1, *[0] * (len(names) - 2)]] * 8
        models.append(model.model_copy(update={"source": ImageCounts(tp=hits, fp=rest, fn=rest)}))
    stream.answer(scores.model_copy(update={"models": tuple(models)}))
    assert registry.serving().version == serves


def test_a_burst_between_two_conditions_does_not_withdraw_the_question(stream, registry) -> None:
    stream.come("day")
    stream.come("night", 2)
    assert ConditionStore(stream.layout.conditions).read().current is None
    assert stream.record.stage == "asked" and stream.unsettled == "a recall to be decided"
    stream.answer(drawn_scores(0.6, 0.9))
    assert registry.serving().version == 1
    assert stream.unsettled == "frames that say which condition the stream is of"
    stream.come("night", 2)
    stream.answer(drawn_scores(0.6, 0.9))
    assert stream.unsettled == ""


def test_without_evidence_nothing_moves_and_it_is_not_asked_every_second(stream, registry) -> None:
    stream.gate.settings = changed(stream.gate.settings, recall={"dwell_seconds": 60.0})
    stream.come("day")
    stream.answer(drawn_scores(0.9, 0.6))
    assert registry.serving().version == 2 and stream.record.stage == "declined"
    stream.come("day")
    assert stream.store.waiting() is None and stream.record.declines == 1


def test_an_open_question_is_asked_again_with_more_frames(stream, registry) -> None:
    stream.gate.settings = changed(stream.gate.settings, recall={"dwell_seconds": 600.0})
    stream.come("fog")
    stream.answer(drawn_scores(0.6, 0.9, frames=4))
    assert stream.record.open and registry.serving().version == 2
    stream.come("fog", 2)
    assert stream.store.waiting() is None
    stream.come("fog", 2)
    assert len(stream.store.waiting().frames) >= 8
    stream.answer(drawn_scores(0.6, 0.9, frames=8))
    assert registry.serving().version == 1


def test_a_flickering_stream_moves_once_in_the_dwell_time(stream, registry) -> None:
    stream.gate.settings = changed(stream.gate.settings, recall={"dwell_seconds": 600.0})
    for look in ("day", "night", "day", "night"):
        stream.come(look)
        if stream.store.waiting() is not None:
            stream.answer(drawn_scores(0.6, 0.9))
    assert [event.event for event in registry.history()].count("recalled") == 1


def test_an_operator_wins_until_the_stream_changes(stream, registry) -> None:
    stream.come("day")
    stream.answer(drawn_scores(0.6, 0.9))
    registry.promote(2, by="operator", reason="I want this one")
    stream.come("day")
    assert stream.store.waiting() is None and registry.serving().version == 2
    stream.come("night")
    stream.come("day")
    assert stream.store.waiting().versions == (2, 1)


def test_an_operator_wins_between_conditions_until_the_next_one_is_left(stream, registry) -> None:
    stream.come("day", 2)
    assert ConditionStore(stream.layout.conditions).read().current is None, "half a burst of each"
    registry.promote(1, by="operator", reason="I want this one")
    stream.gate.step()
    stream.come("night")
    assert stream.store.waiting() is None and registry.serving().version == 1
    stream.come("day")
    stream.come("night")
    assert stream.store.waiting().versions == (1, 2)


def test_a_version_that_was_rolled_back_or_is_gone_is_never_recalled(stream, registry) -> None:
    registry.roll_back(to=1, by="operator", reason="bad")
    stream.gate.step()
    assert stream.best == {"condition-1": 1, "condition-2": 1}
    stream.come("day")
    stream.come("night")
    assert stream.store.waiting() is None


@pytest.mark.parametrize("lost", ["request", "version"])
def test_what_is_lost_meanwhile_ends_the_question(stream, registry, lost: str) -> None:
    stream.gate.settings = changed(stream.gate.settings, recall={"dwell_seconds": 60.0})
    stream.come("day")
    if lost == "request":
        (stream.layout.comparisons / "000001" / "request.json").unlink()
        stream.gate.step()
        assert stream.record.stage == "idle" and "its comparison is gone" in stream.record.reason
    else:
        registry.weights_path(1).write_bytes(b"rubbish")
        stream.answer(drawn_scores(0.6, 0.9))
        assert stream.record.stage == "declined" and "model.safetensors" in stream.record.reason
    assert registry.serving().version == 2


def test_a_damaged_version_challenges_once(stream, registry) -> None:
    stream.come("day")
    stream.answer(drawn_scores(0.6, 0.9))
    assert registry.serving().version == 1
    registry.weights_path(2).write_bytes(b"rubbish")
    stream.come("night")
    request = stream.store.waiting()
    assert request.versions == (1, 2)
    stream.store.answer(request.number, ComparisonScores(status="failed", reason="version 2 is damaged"))
    for _ in range(3):
        stream.come("night")
        assert stream.store.waiting() is None
    assert stream.record.unusable == (2,) and registry.serving().version == 1


@pytest.mark.parametrize("scores", ['{"status": "completed", "frames": [1], "models": [NaN]}', "{", "no frames"])
def test_an_answer_that_says_nothing_is_declined_once(stream, registry, scores: str) -> None:
    stream.gate.settings = changed(stream.gate.settings, recall={"dwell_seconds": 60.0})
    stream.come("day")
    number = stream.store.waiting().number
    if scores == "no frames":
        stream.store.answer(number, ComparisonScores(status="completed"))
    else:
        (stream.store.root / f"{number:06d}" / "scores.json").write_text(scores)
    for _ in range(3):
        stream.gate.step()
    assert stream.record.stage == "declined" and "not compared" in stream.record.reason
    assert registry.serving().version == 2


def test_a_kill_before_the_record_is_written_ends_in_the_same_state(stream, registry) -> None:
    stream.come("day")
    registry.promote(1, by="gate", reason="condition-1 is back", expected=2, recalled=True)
    stream.gate.step()
    assert stream.record.stage == "idle" and registry.serving().version == 1
    stream.come("day")
    assert stream.store.request(2) is None, "nothing is asked again"


def test_a_clock_that_is_set_back_hides_no_move(stream, registry, monkeypatch) -> None:
    stream.come("day")
    stream.answer(drawn_scores(0.6, 0.9))
    monkeypatch.setattr("storage.registry.registry.time.time", lambda: 5.0)
    registry.roll_back(to=2, by="operator", reason="no")
    stream.gate.step()
    assert stream.best == {"condition-1": 2, "condition-2": 2}, "version 1 was rolled back"


def test_retention_keeps_the_best_version_of_every_condition(stream, registry, add_version) -> None:
    for _ in range(4):
        add_version(parent=1)
    assert 2 in registry.prunable(0)
    assert best_versions(stream.layout) == {1, 2}
    assert 2 not in registry.prune(0, best_versions(stream.layout))
