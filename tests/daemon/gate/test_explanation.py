"""What `mfmd explain` says: about every end that a round and a version can have, on real files."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from daemon.gate.check_meanings import MEANINGS
from daemon.gate.moves import roll_back
from daemon.gate.promotion import advance_round
from daemon.gate.suggestion import answer_suggestion
from daemon.status.explained import explained_round, explained_version
from storage.durable import write_record
from storage.errors import UnknownRound, UnknownVersion
from storage.gate.probation import Probation
from storage.layout import StateLayout
from storage.rounds.records import KnownCondition, RoundConditions, RoundScores
from storage.rounds.verdict import CHECKS, Answer, CandidateRuling, ConditionCost, Verdict
from tests.daemon.gate.round_state import BETTER, State, make_state

Round = Callable[..., str]
WORSE = {**BETTER, "source": 0.5}


@pytest.fixture
def explained(tmp_path: Path, a_round: Any, model: Any) -> Callable[..., tuple[State, StateLayout]]:
    """A state directory with one round that was judged."""

    def make(candidate: dict[str, Any], policy: str = "auto", **spec: Any) -> tuple[State, StateLayout]:
        state = make_state(tmp_path, gate={"policy": policy})
        made = a_round(model(**candidate), number=1)
        settings = {"gate": {"policy": policy, "forgetting": "recall"}, "schedule": {"new_frames": 64}}
        made = replace(made, spec=made.spec.model_copy(update={"settings": settings, **spec}))
        advance_round(state.registry, state.finished(made), state.settings)
        return state, StateLayout(state.settings.state)

    return make


def test_every_check_has_a_meaning() -> None:
    assert tuple(MEANINGS) == CHECKS


@pytest.mark.parametrize(
    ("candidate", "policy", "spec", "said"),
    [
        (BETTER, "auto", {"trigger": "new_frames"},
         ("Round 1 was accepted: its candidate is version 3.", "`schedule.new_frames`: 64", "won: vote_flip: ",
          "advantage +", "The gate accepted it", "version 3 began to serve in place of version 2 (by gate")),
        (WORSE, "auto", {"trigger": "drift", "effort": "tiny"},
         ("Round 1: version 2 stayed.", "A drift alarm", "a small round of few steps", "version 2 stays.",
          "VETO: source_miou: source mIoU of the released model", ", bound 0.03)")),
        ({"accuracy": 0.7, "seed": 4}, "auto", {"trigger": "interval", "restarts": True},
         ("Round 1 is inconclusive: version 2 stayed.", "not won: vote_flip",
          "`schedule.interval_seconds`: -",
          "started from the released weights", "nothing proved it better or worse")),
        (BETTER, "manual", {"trigger": "manual"},
         ("Round 1 suggests version 3, which waits: `mfmd approve 3`", "Somebody asked for it", "a person decides")),
        (WORSE, "always", {"trigger": "manual"}, ("An experiment", "gate.policy is always; without it: rejected")),
    ],
    ids=["accepted", "rejected", "inconclusive", "suggested", "always"],
)  # fmt: skip
def test_a_judged_round(
    explained: Any, candidate: dict[str, Any], policy: str, spec: dict[str, Any], said: tuple[str, ...]
) -> None:
    _, layout = explained(candidate, policy, **spec)
    text = explained_round(layout, 1).as_text()
    for part in said:
        assert part in text, text
    assert "None" not in text and ".." not in text


@pytest.mark.parametrize(
    ("stage", "scores", "said"),
    [
        ("training", None, "Round 1 has not ended: it is training."),
        ("failed", None, "It left no scores. Killed by signal 9."),
        ("rejected", RoundScores(status="stopped", reason="SIGTERM", steps=7, seconds=3.0), "Round 1 was stopped: "),
        ("failed", RoundScores(status="failed", reason="non-finite loss at step 12", steps=12, seconds=3.0),
         "It did 12 steps in 3 s and ended so: non-finite loss at step 12."),
    ],
)  # fmt: skip
def test_a_round_without_a_verdict(
    tmp_path: Path, a_round: Any, model: Any, stage: Any, scores: RoundScores | None, said: str
) -> None:
    state = make_state(tmp_path)
    folder = state.rounds.create(a_round(model(), number=1).spec)
    if scores is not None:
        folder.write_scores(scores)
    folder.enter(stage, reason="killed by signal 9" if stage == "failed" else "")
    assert said in explained_round(StateLayout(state.settings.state), 1).as_text().replace("killed", "Killed")


def test_costs_elsewhere(tmp_path: Path, a_round: Any, model: Any) -> None:
    state = make_state(tmp_path)
    known = KnownCondition(number=1, name="day", golden=(), best=1, labelled=True)
    conditions = RoundConditions(newest=2, name="dusk", frames=(7, 8), others=(known,))
    made = a_round(model(), number=1)
    spec = made.spec.model_copy(update={"conditions": conditions, "settings": {"gate": {"forgetting": "veto"}}})
    folder = state.rounds.create(spec)
    costs = (
        ConditionCost(number=1, name="day", version=1, value=-0.1, worse=True, detail="mIoU on source -0.1000"),
        ConditionCost(number=3, name="fog", version=1, detail="version 1 is damaged"),
    )
    ruling = CandidateRuling(name="teacher", decision="rejected", reason="x", passed=(), failed=(), elsewhere=costs)
    folder.write_verdict(
        Verdict(round=1, decision="rejected", reason="x", checks=[], at=1.0, candidate="teacher", candidates=(ruling,))
    )
    folder.enter("rejected", reason="x")
    text = explained_round(StateLayout(state.settings.state), 1).as_text()
    assert "day, against version 1: clearly worse. mIoU on source -0.1000." in text
    assert "fog, against version 1: not known. version 1 is damaged." in text
    assert "`gate.forgetting` is veto: a clear cost rejects the candidate." in text
    assert "The newest frames are of dusk; 2 held-out frames of it decide." in text


def test_what_happened_afterwards_and_the_version(explained: Any) -> None:
    state, layout = explained(BETTER, "manual", trigger="manual")
    assert "Version 3 waits for a decision" in explained_version(layout, 3).as_text()
    answer = Answer(approved=True, by="operator", reason="seen at night", at=9.0)
    answer_suggestion(state.registry, state.settings, 3, answer)
    probation = Probation(stage="watching", version=3, previous=2, since=1.0, after=0, reason="2 of 40 frames")
    write_record(layout.probation, probation)
    text = explained_round(layout, 1).as_text()
    assert "the suggestion was approved by operator: seen at night." in text and "is on probation" in text
    roll_back(state.registry, to=None, by="operator", reason="poles vanish")
    assert "(by operator: poles vanish)" in explained_round(layout, 1).as_text()
    version = explained_version(layout, 3).as_text()
    assert version.startswith("Version 3 served earlier; version 2 serves.")
    assert "Round 1 made it from version 2" in version and "seen at night" in version and "poles vanish" in version
    first = explained_version(layout, 1).as_text()
    assert first.startswith("Version 1 served earlier") and "When it served" in first


def test_unknown_and_damaged(explained: Any) -> None:
    state, layout = explained(WORSE)
    with pytest.raises(UnknownRound):
        explained_round(layout, 9)
    with pytest.raises(UnknownVersion):
        explained_version(layout, 9)
    manifest = state.registry.weights_path(1).with_name("manifest.json")
    manifest.parent.chmod(0o700)
    manifest.unlink()
    manifest.write_text("{")
    text = explained_version(layout, 1).as_text()
    assert "Its manifest cannot be read" in text and "version 1 was added" in text
