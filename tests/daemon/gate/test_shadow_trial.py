"""A candidate's time in the shadow on a real registry, with real files; the test writes what planes would record."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from daemon.gate import promotion, shadow
from daemon.gate.moves import promote, roll_back
from daemon.gate.shadow import open_trial
from storage import durable
from storage.rounds.folder import RoundFolder
from storage.rounds.verdict import Verdict
from tests.daemon.gate.round_state import BETTER
from tests.daemon.gate.shadow_state import BY_HAND, WANTED, Trial, make_trial


@pytest.fixture
def state(tmp_path: Path) -> Trial:
    return make_trial(tmp_path)


@pytest.fixture
def finished(state: Trial, a_round: Any, model: Any) -> Callable[..., RoundFolder]:
    """The folder of a round whose candidate the scores accept."""

    def make(number: int = 1, **candidate: Any) -> RoundFolder:
        return state.finished(a_round(model(**(candidate or BETTER)), number=number))

    return make


def test_an_accepted_candidate_runs_in_the_shadow_and_then_serves(
    state: Trial, finished: Callable[..., RoundFolder]
) -> None:
    folder = finished()
    assert state.judge(folder) is None
    assert (state.serving, state.shadow, folder.verdict()) == (2, (3, "gate"), None)
    assert state.registry.manifest(3).verdict is None, "nothing was decided yet"
    assert open_trial(state.rounds) == 1
    state.compare(WANTED - 5)
    assert state.judge(folder) is None
    state.compare(5, 0.1, plane="b")
    verdict = state.judge(folder)
    assert verdict is not None
    assert (verdict.decision, verdict.version) == ("accepted", 3)
    assert {check.name: check.value for check in verdict.checks[-3:]} == {
        "shadow_images": WANTED,
        "shadow_failed": 0.0,
        "shadow_agreement": pytest.approx((15 * 0.9 + 5 * 0.1) / 20),
    }
    assert folder.verdict() == verdict
    manifest = Verdict.model_validate(state.registry.manifest(3).verdict)
    assert manifest.checks == verdict.checks
    assert state.serving == 3
    assert state.shadow is None
    assert open_trial(state.rounds) is None
    assert state.moves == [("added", 3), ("shadow_started", 3), ("promoted", 3), ("shadow_ended", 3)]
    state.registry.verify(3)
    started = next(item for item in state.registry.history() if item.event == "shadow_started")
    assert started.by == "gate" and "20 live images" in started.reason


def test_too_little_agreement_rejects(state: Trial, finished: Callable[..., RoundFolder]) -> None:
    folder = finished()
    state.judge(folder)
    state.compare(WANTED, 0.49)
    verdict = state.judge(folder)
    assert verdict is not None
    assert (verdict.decision, verdict.version) == ("rejected", None)
    assert "49.0%" in verdict.reason and "50.0% needed" in verdict.reason
    assert (state.serving, state.shadow) == (2, None)
    assert state.moves[2:] == [("rejected", 3), ("shadow_ended", 3)]
    assert Verdict.model_validate(state.registry.manifest(3).verdict) == verdict
    events = state.events()
    assert state.judge(folder) == verdict
    assert state.events() == events


def test_errors_on_any_plane_reject_and_their_number_is_in_the_verdict(
    state: Trial, finished: Callable[..., RoundFolder]
) -> None:
    folder = finished()
    state.judge(folder)
    state.compare(6)
    assert state.judge(folder) is None
    state.compare(0, failed=1, plane="b")
    verdict = state.judge(folder)
    assert verdict is not None and verdict.decision == "rejected"
    assert "an error on 1 of 7 live images, at most 1.0% of 20 may" in verdict.reason
    saved = Verdict.model_validate_json((folder.path / "verdict.json").read_bytes())
    [failed] = [check for check in saved.checks if check.name == "shadow_failed"]
    assert (failed.passed, failed.value, failed.limit) == (False, pytest.approx(1 / 7), 0.01)
    assert (state.serving, state.shadow) == (2, None)


def test_too_few_images_in_time_are_inconclusive_and_restarts_do_not_make_more_time(
    state: Trial, finished: Callable[..., RoundFolder]
) -> None:
    folder = finished()
    state.judge(folder)
    state.compare(WANTED - 1)
    assert state.judge(folder, waited=59.0) is None
    shadow.note_wait(folder, 59.0)
    assert state.judge(folder, waited=0.5) is None
    verdict = state.judge(folder, waited=1.5)
    assert verdict is not None and verdict.decision == "inconclusive"
    assert "too few images in 60 s of shadow: 19 of 20" in verdict.reason
    assert (state.serving, state.shadow) == (2, None)


@pytest.mark.parametrize("candidate", [{"seed": 2}, {"source": 0.5}], ids=["copy", "forgot"])
def test_only_accepted_candidates_see_the_shadow(
    state: Trial, finished: Callable[..., RoundFolder], candidate: dict[str, Any]
) -> None:
    folder = finished(**candidate)
    verdict = state.judge(folder)
    assert verdict is not None and verdict.decision != "accepted"
    assert (folder.record().trial, state.shadow, state.registry.versions()) == (None, None, [1, 2])


def test_evidence_about_another_pair_counts_nothing(state: Trial, finished: Callable[..., RoundFolder]) -> None:
    folder = finished()
    state.judge(folder)
    state.compare(WANTED, serving=1)
    state.compare(WANTED, candidate=2, serving=2)
    assert state.judge(folder) is None


def test_a_rollback_meanwhile_stands(state: Trial, finished: Callable[..., RoundFolder]) -> None:
    folder = finished()
    state.judge(folder)
    state.compare(WANTED)
    roll_back(state.registry, to=None, by="operator", reason="poles vanish")
    verdict = state.judge(folder)
    assert verdict is not None and verdict.decision == "inconclusive"
    assert "version 1 serves, the shadow began beside version 2" in verdict.reason
    assert (state.serving, state.shadow) == (1, None)
    assert Verdict.model_validate(state.registry.manifest(3).verdict).decision == "inconclusive"


def test_an_operator_who_serves_the_candidate_by_hand_outweighs_the_verdict(
    state: Trial, finished: Callable[..., RoundFolder]
) -> None:
    folder = finished()
    state.judge(folder)
    promote(state.registry, 3, by="operator", reason="we need it now")
    verdict = state.judge(folder)
    assert verdict is not None and verdict.decision == "inconclusive"
    assert state.moves[-2:] == [("inconclusive", None), ("shadow_ended", 3)]
    promote(state.registry, 1, by="operator", reason="look")
    assert roll_back(state.registry, to=None, by="operator", reason="back").version == 3


def test_a_rollback_between_the_evidence_and_the_promotion_stands(
    state: Trial, finished: Callable[..., RoundFolder], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, real = finished(), promotion.poll_shadow
    state.judge(folder)
    state.compare(WANTED)

    def then_rolled_back(*args: Any, **more: Any) -> Verdict | None:
        verdict = real(*args, **more)
        roll_back(state.registry, to=1, by="operator", reason="now")
        return verdict

    monkeypatch.setattr(promotion, "poll_shadow", then_rolled_back)
    verdict = state.judge(folder)
    assert verdict is not None and verdict.decision == "inconclusive"
    assert verdict.reason.startswith("serving changed")
    assert (state.serving, state.shadow) == (1, None)
    assert Verdict.model_validate(state.registry.manifest(3).verdict).decision == "inconclusive"


def test_an_operators_shadow_is_waited_for_and_never_taken_away(
    state: Trial, finished: Callable[..., RoundFolder]
) -> None:
    state.registry.set_shadow(1, **BY_HAND)
    folder = finished()
    assert state.judge(folder) is None
    assert state.shadow == (1, "operator")
    state.registry.set_shadow(None, **BY_HAND)
    assert state.judge(folder) is None
    assert state.shadow == (3, "gate")
    state.registry.set_shadow(1, **BY_HAND)
    verdict = state.judge(folder)
    assert verdict is not None and "an operator ended its shadow" in verdict.reason
    assert state.shadow == (1, "operator"), "the operator's stays at the end, too"


def test_an_operators_shadow_that_stays_leaves_the_verdict_open(
    state: Trial, finished: Callable[..., RoundFolder]
) -> None:
    state.registry.set_shadow(1, **BY_HAND)
    folder = finished()
    state.judge(folder)
    verdict = state.judge(folder, waited=60.0)
    assert verdict is not None and verdict.decision == "inconclusive"
    assert "version 1 was in the shadow instead" in verdict.reason
    assert (state.serving, state.shadow) == (2, (1, "operator"))


@pytest.mark.parametrize("damage", ["weights", "gone"])
def test_a_candidate_that_cannot_run_is_not_waited_for(
    state: Trial, finished: Callable[..., RoundFolder], damage: str
) -> None:
    state.registry.set_shadow(1, **BY_HAND)
    folder = finished()
    state.judge(folder)
    if damage == "weights":
        state.registry.weights_path(3).write_bytes(b"nothing")
    else:
        state.registry.prune(0)
        assert 3 not in state.registry.versions()
    state.registry.set_shadow(None, **BY_HAND)
    verdict = state.judge(folder)
    assert verdict is not None and verdict.decision == "inconclusive"
    assert "cannot run in the shadow" in verdict.reason
    assert (state.serving, state.shadow) == (2, None)


class Died(BaseException):
    """The process was killed here."""


@pytest.mark.parametrize("agreement", [0.9, 0.1], ids=["promoted", "rejected"])
def test_killed_at_any_durable_step_the_next_daemon_brings_it_to_the_same_end(
    state: Trial, finished: Callable[..., RoundFolder], monkeypatch: pytest.MonkeyPatch, agreement: float
) -> None:
    """The gate dies at its first, second, third ... durable step, is started again, and lives."""
    number, steps = finished().number, 0
    expected = (("accepted", 3), 3) if agreement > 0.5 else (("rejected", None), 2)
    while True:
        copy = state.copy(f"killed-{steps}")
        died = 0
        for images in (0, WANTED):
            if images:
                copy.compare(images, agreement)
            left = [steps]
            with monkeypatch.context() as patched:
                patched.setattr(durable, "step", partial(_die_at, left))
                try:
                    copy.judge(copy.rounds.folder(number))
                except Died:
                    died += 1
            copy.start_again(number)
            assert images or copy.serving == 2, "nothing serves without evidence"
            assert copy.shadow == (None if images else (3, "gate"))
        verdict = copy.rounds.folder(number).verdict()
        assert verdict is not None
        assert ((verdict.decision, verdict.version), copy.serving) == expected
        assert copy.registry.versions() == [1, 2, 3]
        assert Verdict.model_validate(copy.registry.manifest(3).verdict).decision == verdict.decision
        told = [item.event for item in copy.registry.history() if item.event in ("promoted", "rejected") and item.round]
        assert told == ["rejected"] or set(told) == {"promoted"}, "a kill adds no second verdict"
        assert copy.rounds.folder(number).record().stage in ("promoted", "rejected")
        steps += 1
        if not died:
            break
    assert steps > 20


def _die_at(left: list[int], name: str) -> None:
    if left[0] == 0:
        raise Died(name)
    left[0] -= 1
