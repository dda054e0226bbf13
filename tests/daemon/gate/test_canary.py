"""Canary labels in the gate, from a table: five decide before any vote, fewer only veto, damage accepts nothing."""

from typing import Any

import numpy as np
import pytest

from configs.gate import GateSettings
from daemon.gate.decide import decide
from storage.rounds.records import ImageCounts, RoundScores
from storage.rounds.verdict import Verdict

NAMES = ("road", "building", "tree", "sky", "pole")
BETTER: dict[str, Any] = {"accuracy": 0.8, "confidence": 0.7, "styled": 0.78, "seed": 3}
SETTINGS = GateSettings()
WORSE: dict[str, Any] = {"accuracy": 0.6, "confidence": 0.5, "styled": 0.6, "seed": 3}


def counts(right: float, images: int, spread: float = 0.0) -> ImageCounts:
    """100 pixels of each class an image, of which the share `right` is hit; odd images more, even ones less."""
    shares = right + spread * np.where(np.arange(images) % 2, 1.0, -1.0)
    hit = np.repeat((100 * shares).round().astype(int)[:, None], len(NAMES), axis=1)
    return ImageCounts(tp=hit.tolist(), fp=(100 - hit).tolist(), fn=(100 - hit).tolist())


def judged(
    scores: RoundScores, spec: Any, right: float, images: int, spread: float = 0.0,
    settings: GateSettings = SETTINGS, **changes: Any,
) -> Verdict:  # fmt: skip
    """The verdict with canary counts: the incumbent hits 70 %, the candidate `right`."""
    models = {
        "incumbent": scores.incumbent.model_copy(update={"canary": counts(0.7, images)}),
        "candidate": scores.candidate.model_copy(update={"canary": counts(right, images, spread)}),
    }
    models = models if images else {}
    return decide(spec, scores.model_copy(update={**models, **changes}), settings, NAMES, at=5.0)


@pytest.mark.parametrize(
    ("candidate", "right", "images", "spread", "frames", "decision", "kind"),
    [
        (BETTER, 0.6, 5, 0.0, 12, "rejected", "vote"),
        (WORSE, 0.8, 5, 0.0, 12, "accepted", "vote"),
        ({"seed": 2}, 0.8, 12, 0.05, 0, "accepted", "vote"),
        (BETTER, 0.69, 8, 0.05, 12, "inconclusive", "vote"),
        (BETTER, 0.71, 8, 0.05, 12, "accepted", "vote"),
        (WORSE, 0.7, 8, 0.05, 12, "rejected", "vote"),
        (BETTER, 0.6, 4, 0.0, 12, "rejected", "veto"),
        (WORSE, 0.8, 4, 0.0, 12, "rejected", "veto"),
        ({"seed": 2}, 0.8, 4, 0.0, 12, "inconclusive", "veto"),
        (BETTER, 0.69, 4, 0.05, 12, "accepted", "veto"),
        (BETTER, 0.8, 1, 0.0, 12, "accepted", "veto"),
        ({**BETTER, "source": 0.7}, 0.9, 9, 0.0, 12, "rejected", "vote"),
    ],
    ids=[
        "worse beats votes that are won", "better beats votes that are lost", "decides without held-out frames",
        "votes are won, the labels say slightly worse", "labels open, votes decide", "labels open, votes reject",
        "four veto", "four do not accept", "four leave it open", "four that are not sure do not veto", "one",
        "forgetting vetoes all the same",
    ],
)  # fmt: skip
def test_labels_decide_before_votes(
    a_round: Any, model: Any, candidate: Any, right: float, images: int, spread: float, frames: int, decision: str,
    kind: str,
) -> None:  # fmt: skip
    round_ = a_round(model(**candidate), frames=frames)
    verdict = judged(round_.scores, round_.spec, right, images, spread)
    (check,) = [item for item in verdict.checks if item.name == "canary"]
    assert (verdict.decision, check.kind) == (decision, kind), verdict.reason
    assert f"{images} canary images" in check.detail
    assert (f"{5 - images} more would decide" in check.detail) == (images < 5)


@pytest.mark.parametrize(
    ("right", "images", "decision", "reason"),
    [
        (0.8, 5, "accepted", "better than the incumbent"),
        (0.6, 5, "rejected", "worse than the incumbent"),
        (0.71, 8, "inconclusive", "labels do not decide: mIoU on 8 canary images"),
        (0.8, 3, "inconclusive", "2 more would decide"),
        (0.6, 3, "rejected", "veto"),
        (0.8, 0, "inconclusive", "no labelled canary image was scored; 5 decide"),
    ],
)
def test_with_policy_canary_no_vote_counts(
    a_round: Any, model: Any, right: float, images: int, decision: str, reason: str
) -> None:
    round_ = a_round(model(**BETTER))
    settings = GateSettings(policy="canary")
    spread = 0.05 if images == 8 else 0.0
    verdict = judged(round_.scores, round_.spec, right, images, spread, settings)
    assert verdict.decision == decision and reason in verdict.reason, verdict.reason
    assert not any(check.name.startswith("vote_") for check in verdict.checks)


def test_the_candidate_that_wins_on_labels_serves_though_another_wins_more_votes(a_round: Any, model: Any) -> None:
    round_ = a_round(model(**BETTER))
    scores = round_.scores
    winner = scores.candidate.model_copy(update={"canary": counts(0.8, 6)})
    verdict = judged(scores, round_.spec, 0.71, 6, 0.05, others={"student": winner})
    assert (verdict.decision, verdict.candidate) == ("accepted", "student")
    assert [item.decision for item in verdict.candidates] == ["accepted", "accepted"]


@pytest.mark.parametrize("harm", ["unreadable", "missing", "ragged"])
def test_labels_that_cannot_be_compared_accept_nothing(a_round: Any, model: Any, harm: str) -> None:
    round_ = a_round(model(**BETTER))
    scores, changes = round_.scores, dict[str, Any]()
    if harm == "unreadable":
        changes["canary_problem"] = "a.png: 3x3 pixels, its image has 4x4"
    else:
        odd = None if harm == "missing" else counts(0.9, 5).model_copy(update={"fp": [[1], [2]]})
        changes["candidate"] = scores.candidate.model_copy(update={"canary": odd})
    verdict = judged(scores, round_.spec, 0.9, 6, **changes)
    assert verdict.decision == "inconclusive" and "canary" in verdict.reason
    assert harm != "unreadable" or "3x3 pixels" in verdict.reason


@pytest.mark.parametrize(("weights", "decision"), [({}, "rejected"), (dict.fromkeys(NAMES[:4], 0.0), "accepted")])
def test_only_classes_that_count_decide(a_round: Any, model: Any, weights: dict[str, float], decision: str) -> None:
    """The candidate finds more poles and less of everything else."""
    round_ = a_round(model(**BETTER))
    before, after = counts(0.7, 8), counts(0.6, 8)
    for found, kind in ((after.tp, 90), (after.fp, 10), (after.fn, 10)):
        for row in found:
            row[4] = kind
    models = {
        "incumbent": round_.scores.incumbent.model_copy(update={"canary": before}),
        "candidate": round_.scores.candidate.model_copy(update={"canary": after}),
    }
    advanced = SETTINGS.advanced.model_copy(update={"class_weights": weights})
    settings = SETTINGS.model_copy(update={"advanced": advanced})
    verdict = decide(round_.spec, round_.scores.model_copy(update=models), settings, NAMES, at=5.0)
    assert verdict.decision == decision, verdict
