"""Policies of the gate: what each accepts, and the suggestion that waits for a person (`gate.policy: manual`)."""

import threading
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from configs.gate import GateSettings
from daemon.gate import suggestion
from daemon.gate.decide import decide
from daemon.gate.moves import promote, spared_versions
from daemon.gate.promotion import advance_round
from daemon.gate.suggestion import answer_suggestion, settle_suggestions, waiting_version
from daemon.rounds.history import summarise
from daemon.rounds.recovery import finish_round
from storage.errors import CorruptCheckpoint, NotSuggested, ServingChanged, StorageError
from storage.layout import StateLayout
from storage.rounds.folder import RoundFolder
from storage.rounds.verdict import Answer
from tests.daemon.gate.round_state import BETTER, NAMES, State, make_state

YES = Answer(approved=True, by="operator", reason="checked at night", at=9.0)
NO = Answer(approved=False, by="operator", reason="poles vanish", at=9.0)


@pytest.fixture
def state(tmp_path: Path) -> State:
    return make_state(tmp_path, gate={"policy": "manual"})


@pytest.fixture
def suggest(state: State, a_round: Any, model: Any) -> Callable[..., RoundFolder]:
    """A round whose better candidate waits for a decision."""

    def make(number: int = 1, weights: float = 7.0) -> RoundFolder:
        folder = state.finished(a_round(model(**BETTER), number=number), state.weights(weights))
        assert advance_round(state.registry, folder, state.settings) == "suggested"
        return folder

    return make


def end_of(state: State, folder: RoundFolder) -> tuple[str, str, int]:
    """Stage, decision and serving version, after the daemon's next step; the same after another one."""
    found = []
    for _ in range(2):
        settle_suggestions(state.registry, state.settings)
        verdict, manifest = folder.verdict(), state.registry.manifest(3)
        assert verdict is not None and (manifest.verdict or {})["decision"] == verdict.decision
        found.append((folder.record().stage, verdict.decision, state.serving))
    assert found[0] == found[1]
    return found[0]


@pytest.mark.parametrize(
    ("policy", "candidate", "images", "decision"),
    [
        ("auto", {**BETTER, "source": 0.5}, 24, "rejected"),
        ("source", {**BETTER, "source": 0.5}, 24, "rejected"),
        ("source_free", {**BETTER, "source": 0.5}, 24, "accepted"),
        ("source_free", BETTER, 0, "accepted"),
        ("manual", BETTER, 24, "accepted"),
        ("always", {**BETTER, "source": 0.5}, 24, "accepted"),
        ("always", {"accuracy": 0.3, "seed": 4}, 0, "accepted"),
    ],
)
def test_what_each_policy_accepts(
    a_round: Any, model: Any, policy: str, candidate: dict[str, Any], images: int, decision: str
) -> None:
    made = a_round(model(**candidate), images=images)
    verdict = decide(made.spec, made.scores, GateSettings.model_validate({"policy": policy}), NAMES, at=1.0)
    assert verdict.decision == decision, verdict.reason
    assert ("gate.policy is always" in verdict.reason) == (policy == "always")


@pytest.mark.parametrize("broken", [{"finite": False}, {"missing": ["decoder.w"]}])
def test_always_serves_no_broken_candidate(a_round: Any, model: Any, broken: dict[str, Any]) -> None:
    made = a_round(model(**BETTER))
    scores = made.scores.model_copy(update={"candidate": made.scores.candidate.model_copy(update=broken)})
    assert decide(made.spec, scores, GateSettings(policy="always"), NAMES, at=1.0).decision == "rejected"
    failed = made.scores.model_copy(update={"status": "failed"})
    assert decide(made.spec, failed, GateSettings(policy="always"), NAMES, at=1.0).decision == "rejected"


def test_policy_source_needs_source(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"gate.policy: 'source' needs labelled source images"):
        make_state(tmp_path, gate={"policy": "source"})


def test_a_suggestion_waits_and_nothing_moves(state: State, suggest: Callable[..., RoundFolder]) -> None:
    folder = suggest()
    assert end_of(state, folder) == ("suggested", "accepted", 2)
    assert finish_round(folder, state.registry, state.settings) == ""
    assert summarise(folder).result == "suggested" and waiting_version(state.rounds) == 3
    assert spared_versions(StateLayout(state.settings.state)) == {3}
    assert state.rounds.prune(1) == []


@pytest.mark.parametrize(
    ("answer", "end", "event"),
    [(YES, ("promoted", "accepted", 3), "promoted"), (NO, ("rejected", "rejected", 2), "rejected")],
    ids=["approved", "rejected"],
)
def test_a_person_decides(
    state: State, suggest: Callable[..., RoundFolder], answer: Answer, end: tuple[str, str, int], event: str
) -> None:
    folder = suggest()
    verdict = answer_suggestion(state.registry, state.settings, 3, answer)
    assert end_of(state, folder) == end
    assert verdict == folder.verdict() and verdict.answer == answer and answer.reason in verdict.reason
    line = state.registry.history()[-1]
    assert (line.event, line.version, line.round) == (event, 3, 1) and answer.reason in line.reason
    with pytest.raises(NotSuggested):
        answer_suggestion(state.registry, state.settings, 3, answer)
    assert end_of(state, folder) == end


def by_hand(state: State) -> None:
    promote(state.registry, 3, by="operator", reason="by hand")


def other_serves(state: State) -> None:
    promote(state.registry, 1, by="operator", reason="by hand")


def test_what_happens_to_a_suggestion_meanwhile(state: State, suggest: Callable[..., RoundFolder]) -> None:
    folder = suggest()
    newer = suggest(2, 8.0)
    assert end_of(state, folder) == ("rejected", "inconclusive", 2)
    assert "replaced by version 4" in folder.record().reason
    other_serves(state)
    with pytest.raises(NotSuggested, match="serving changed while it waited"):
        answer_suggestion(state.registry, state.settings, 4, YES)
    assert (newer.record().stage, state.serving) == ("rejected", 1)
    assert [event for event, *_ in state.events()].count("inconclusive") == 2


def test_a_suggestion_served_by_hand_was_approved(state: State, suggest: Callable[..., RoundFolder]) -> None:
    folder = suggest()
    by_hand(state)
    assert end_of(state, folder) == ("promoted", "accepted", 3)
    assert "by hand" in folder.record().reason


def test_a_damaged_version_is_not_approved_and_waits(state: State, suggest: Callable[..., RoundFolder]) -> None:
    folder = suggest()
    weights = state.registry.weights_path(3)
    intact = weights.read_bytes()
    weights.chmod(0o600)
    weights.write_bytes(intact[:-1])
    with pytest.raises(CorruptCheckpoint):
        answer_suggestion(state.registry, state.settings, 3, YES)
    assert end_of(state, folder) == ("suggested", "accepted", 2)
    folder.change(answer=YES)  # it was damaged after the answer was written, and the daemon was killed between
    assert end_of(state, folder) == ("rejected", "inconclusive", 2)
    assert "it cannot serve" in folder.record().reason


@pytest.mark.parametrize("answer", [YES, NO], ids=["approved", "rejected"])
@pytest.mark.parametrize("step", ["_settle", "promote", "into_manifest", "end_round", "enter"])
def test_an_answer_cut_by_a_kill_is_carried_out(
    state: State,
    suggest: Callable[..., RoundFolder],
    monkeypatch: pytest.MonkeyPatch,
    answer: Answer,
    step: str,
) -> None:
    folder = suggest()

    def dies(*_: object, **more: object) -> None:
        if step != "_settle" or folder.record().answer is not None:
            raise KeyboardInterrupt
        return original(*_, **more)

    place = RoundFolder if step == "enter" else suggestion
    original = getattr(place, step)
    with monkeypatch.context() as patch:
        patch.setattr(place, step, dies)
        never = (step, answer) == ("promote", NO)  # a rejection promotes nothing, so nothing dies
        with nullcontext() if never else pytest.raises(KeyboardInterrupt):
            answer_suggestion(state.registry, state.settings, 3, answer)
    assert end_of(state, folder)[0] == ("promoted" if answer.approved else "rejected")
    lines = [event for event, version, _ in state.events() if version == 3]
    assert lines == ["added", "promoted" if answer.approved else "rejected"]


def test_two_answers_at_once(state: State, suggest: Callable[..., RoundFolder]) -> None:
    folder, start, results = suggest(), threading.Barrier(6), []

    def send(answer: Answer) -> None:
        start.wait()
        try:
            results.append(answer_suggestion(state.registry, state.settings, 3, answer).decision)
        except (NotSuggested, ServingChanged) as error:
            results.append(type(error).__name__)

    threads = [threading.Thread(target=send, args=(answer,)) for answer in (YES, NO) * 3]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results)[:5] == ["NotSuggested"] * 5, results
    assert sorted(results)[5] == (folder.verdict() or pytest.fail("no verdict")).decision
    assert len([1 for event, version, _ in state.events() if version == 3 and event != "added"]) == 1


def test_a_rollback_after_the_approval_stands(state: State, suggest: Callable[..., RoundFolder]) -> None:
    folder = suggest()
    folder.change(answer=YES)
    state.registry.promote(3, by="operator", reason="x", round=1, expected=2)  # killed here, then rolled back
    state.registry.roll_back(to=None, by="operator", reason="worse")
    assert end_of(state, folder) == ("promoted", "accepted", 2)


def test_a_modified_folder_is_said(state: State, suggest: Callable[..., RoundFolder]) -> None:
    folder = suggest()
    (folder.path / "verdict.json").unlink()
    with pytest.raises(StorageError, match="names no version"):
        answer_suggestion(state.registry, state.settings, 3, YES)
