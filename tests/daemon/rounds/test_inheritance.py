"""Whose training state a round starts from: one line of promoted versions, clean after a rollback or a change."""

import threading

import pytest

from configs.load import merge
from daemon.gate import moves, promotion
from daemon.gate.decide import decide
from daemon.rounds.history import rejected_in_a_row, summaries
from daemon.rounds.inheritance import inherited_round, promoted_round
from daemon.rounds.runner import RoundContext, RoundFailed, launch_round
from storage.rounds.records import RoundConditions, RoundSpec
from storage.rounds.verdict import Verdict

ACCEPTED = """
import numpy
from safetensors.numpy import save_file
from storage.rounds.records import ModelScores
save(9)
save_file({"weight": numpy.full(4, folder.number, numpy.float32)}, folder.candidate)
model = ModelScores(version=None, finite=True)
folder.write_scores(RoundScores(status="completed", reason="step budget", steps=9, seconds=1.0, candidate=model))
"""
REJECTED = ACCEPTED.replace("step budget", "time budget")
FAILED = "save(9); scores('failed', 'non-finite loss')"


@pytest.fixture
def adapt(world, registry, store, program, monkeypatch):
    """Run a round whose completed candidate the gate accepts; returns its spec. The gate itself: tests/daemon/gate."""

    def accept(spec, scores, *arguments, **more):
        verdict = decide(spec, scores, *arguments, **more)
        decision = {"step budget": "accepted", "time budget": "rejected"}.get(scores.reason)
        return verdict.model_copy(update={"decision": decision, "reason": "test"}) if decision else verdict

    monkeypatch.setattr(promotion, "decide", accept)

    def run(code: str = ACCEPTED, **sections):
        program(code)
        values = world.settings.model_dump()
        settings = type(world.settings).model_validate(merge(values, sections))
        try:
            launch_round(RoundContext(settings, world.buffer, registry, threading.Event()), "manual")
        except RoundFailed:
            assert code == FAILED
        return store.latest().spec()

    return run


def test_accepted_rounds_in_a_row_inherit(adapt, registry, store):
    assert adapt().inherits is None, "version 1 comes from source training"
    assert (registry.serving().version, promoted_round(registry)) == (2, 1)
    assert (adapt().inherits, adapt().inherits) == (1, 2)
    assert [number for number in store.numbers() if store.folder(number).states.steps()] == [3]


def test_a_round_that_was_not_promoted_does_not_break_the_line(adapt, store):
    adapt()
    assert adapt(FAILED).inherits == 1
    assert adapt(FAILED).inherits == 1
    assert [number for number in store.numbers() if store.folder(number).states.steps()] == [1]
    assert adapt().inherits == 1


def test_after_a_rollback_a_round_starts_clean_and_begins_a_new_line(adapt, registry, store):
    adapt()
    adapt()
    moves.roll_back(registry, to=None, by="operator", reason="test")
    assert registry.serving().version == 2
    after = adapt()
    assert (after.incumbent, after.inherits) == (2, None), "from what serves, with clean training state"
    assert [number for number in store.numbers() if store.folder(number).states.steps()] == [3]
    assert adapt().inherits == 3


def test_going_back_and_forward_again_starts_clean(adapt, registry):
    adapt()
    moves.roll_back(registry, to=1, by="operator", reason="test")
    moves.promote(registry, 2, by="operator", reason="test")
    assert adapt().inherits is None


@pytest.mark.parametrize(
    ("sections", "named"),
    [
        ({"recipe": {"name": "daformer"}}, "recipe.name"),
        ({"mfm": {"ablation": {"dim": 64}}}, "mfm.ablation.dim"),
        ({"mfm": {"enabled": False}}, "mfm.enabled"),
        ({"round": {"crop_height": 40}}, "round.crop_height"),
        ({"round": {"advanced": {"inherit": False}}}, "round.advanced.inherit is off"),
    ],
)
def test_a_change_of_what_shapes_the_state_starts_clean(adapt, world, registry, store, sections, named):
    adapt()
    values = world.settings.model_dump()
    settings = type(world.settings).model_validate(merge(values, sections))
    number, why = inherited_round(settings, registry, store)
    assert number is None and named in why
    assert adapt(**sections).inherits is None


def test_other_changes_inherit(adapt):
    adapt()
    assert adapt(round={"steps": 7, "optim": {"learning_rate": 1e-5}}, mfm={"mask_ratio": 0.5}).inherits == 1


def test_a_missing_state_starts_clean(adapt, store, world, registry):
    adapt()
    store.folder(1).states.remove()
    assert inherited_round(world.settings, registry, store) == (None, "round 1 has no training state")
    assert adapt().inherits is None


def test_the_folder_with_the_state_of_the_line_is_not_pruned(adapt, store):
    adapt(round={"advanced": {"keep_folders": 1}})
    adapt(FAILED, round={"advanced": {"keep_folders": 1}})
    adapt(FAILED, round={"advanced": {"keep_folders": 1}})
    assert store.numbers() == [1, 3]
    assert adapt(round={"advanced": {"keep_folders": 1}}).inherits == 1
    assert store.numbers() == [4]


def test_after_rejected_rounds_one_starts_from_the_released_weights(adapt, store):
    adapt()
    _judged(store, 2, "rejected", incumbent=2)
    again = adapt(REJECTED, round={"advanced": {"restart_after_rejections": 1}})
    assert (again.restarts, again.start, again.inherits, again.incumbent) == (True, 1, None, 2)
    assert rejected_in_a_row(summaries(store, 9, alive=False), 2, None) == 0, "the count starts again"


def _judged(store, number: int, what: str, *, incumbent: int, condition: int | None = None) -> None:
    """A round that has ended: `what` is its decision or stage; restarts, or crashed after it; damaged; statistics."""
    known = None if condition is None else RoundConditions(newest=condition, name="day", frames=())
    spec = {
        "round": number,
        "incumbent": incumbent,
        "released": 1,
        "restarts": what in ("restarts", "crashed"),
        "conditions": known,
    }
    spec["effort"] = "statistics" if what == "statistics" else "full"
    facts = {"train_frames": (), "holdout_frames": (), "settings": {}, "created": 0.0, "trigger": "new_frames"}
    folder = store.create(RoundSpec(**spec, **facts))
    decision = what if what in ("rejected", "inconclusive") else "rejected"
    folder.write_verdict(Verdict(round=number, decision=decision, reason="", checks=[], at=1.0))
    folder.enter({"promoted": "promoted", "failed": "failed", "crashed": "failed"}.get(what, "rejected"))
    if what == "damaged":
        folder.spec_path.write_text("{")


@pytest.mark.parametrize(
    ("rounds", "condition", "count"),
    [
        ([], None, 0),
        (["rejected"] * 3, None, 3),
        (["rejected", "inconclusive", "failed", "rejected"], None, 2),
        (["rejected", "promoted", "rejected"], None, 1),
        (["rejected", "restarts", "rejected"], None, 1),
        (["rejected", "rejected", "crashed", "crashed"], None, 2),
        (["rejected", "rejected", "crashed", "crashed", "crashed"], None, 0),
        (["rejected", "rejected old", "rejected"], None, 1),
        (["rejected", "damaged", "rejected"], None, 2),
        (["rejected", "statistics", "rejected"], None, 2),
        (["rejected 1", "rejected 2", "rejected 1", "rejected"], 1, 3),
        (["rejected 1", "rejected 2", "rejected 1", "rejected"], 2, 2),
    ],
)
def test_which_rounds_count_as_rejected_in_a_row(store, rounds, condition, count):
    for number, told in enumerate(rounds, 1):
        what, *of = told.split()
        of_condition = int(of[0]) if of and of[0].isdigit() else None
        _judged(store, number, what, incumbent=1 if "old" in of else 2, condition=of_condition)
    assert rejected_in_a_row(summaries(store, 9, alive=False), 2, condition) == count
