"""Whose training state a round starts from: one line of promoted versions, clean after a rollback or a change."""

import threading

import pytest

from configs.load import merge
from daemon.gate import promotion
from daemon.gate.decide import decide
from daemon.rounds.inheritance import inherited_round, promoted_round
from daemon.rounds.runner import RoundContext, RoundFailed, launch_round

ACCEPTED = """
import numpy
from safetensors.numpy import save_file
from storage.rounds.records import ModelScores
save(9)
save_file({"weight": numpy.full(4, folder.number, numpy.float32)}, folder.candidate)
model = ModelScores(version=None, finite=True)
folder.write_scores(RoundScores(status="completed", reason="step budget", steps=9, seconds=1.0, candidate=model))
"""
FAILED = "save(9); scores('failed', 'non-finite loss')"


@pytest.fixture
def adapt(world, registry, store, program, monkeypatch):
    """Run a round whose completed candidate the gate accepts; returns its spec. The gate itself: tests/daemon/gate."""

    def accept(spec, scores, *arguments, **more):
        verdict = decide(spec, scores, *arguments, **more)
        completed = scores.status == "completed"
        return verdict.model_copy(update={"decision": "accepted", "reason": "test"}) if completed else verdict

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
    promotion.roll_back(registry, to=None, by="operator", reason="test")
    assert registry.serving().version == 2
    after = adapt()
    assert (after.incumbent, after.inherits) == (2, None), "from what serves, with clean training state"
    assert [number for number in store.numbers() if store.folder(number).states.steps()] == [3]
    assert adapt().inherits == 3


def test_going_back_and_forward_again_starts_clean(adapt, registry):
    adapt()
    promotion.roll_back(registry, to=1, by="operator", reason="test")
    promotion.promote(registry, 2, by="operator", reason="test")
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
