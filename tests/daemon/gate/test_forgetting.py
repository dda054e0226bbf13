"""What a candidate costs in other conditions: in the verdict, and a veto or not by `gate.forgetting`."""

import json
import random
from typing import Any

import pytest
from pydantic import ValidationError

from configs.gate import GateSettings
from daemon.gate.decide import decide
from daemon.gate.forgetting import takes_over
from storage.gate.conditions import Condition
from storage.rounds.records import ConditionScores, KnownCondition, ModelScores, RoundConditions, RoundScores
from storage.rounds.verdict import ConditionCost, Verdict
from tests.sections import section

NAMES = ("road", "building", "tree", "sky", "pole")
BETTER: dict[str, Any] = {"accuracy": 0.8, "confidence": 0.7, "styled": 0.78, "seed": 3}
GOOD, BAD = {"accuracy": 0.9, "confidence": 0.9, "seed": 4}, {"accuracy": 0.6, "confidence": 0.5, "seed": 5}


def elsewhere(a_round: Any, model: Any, good: Any, candidate: Any, **changes: Any) -> ConditionScores:
    """Golden frames on which `best` and the candidate were scored."""
    scores = a_round(model(**candidate), model(**good), frames=8).scores
    found = {"number": 2, "name": "fog", "labelled": False, "version": 1, "best": scores.incumbent}
    return ConditionScores(**{**found, "candidates": {"candidate": scores.candidate}, **changes})


def judged(
    a_round: Any, model: Any, found: ConditionScores, settings: GateSettings, *, recalls: bool = True
) -> Verdict:
    round_ = a_round(model(**BETTER))
    scores = RoundScores.model_validate_json(round_.scores.model_copy(update={"elsewhere": (found,)}).model_dump_json())
    return decide(round_.spec, scores, settings, NAMES, at=5.0, recalls=recalls)


@pytest.mark.parametrize(
    ("forgetting", "recalls", "candidate", "decision"),
    [
        ("recall", True, BAD, "accepted"),
        ("recall", False, BAD, "rejected"),
        ("veto", True, BAD, "rejected"),
        ("allow", False, BAD, "accepted"),
        ("veto", False, GOOD, "accepted"),
    ],
)
def test_forgetting(a_round: Any, model: Any, forgetting: Any, recalls: bool, candidate: Any, decision: str) -> None:
    best = {"accuracy": 0.75, "seed": 6} if candidate is GOOD else GOOD
    settings = GateSettings(forgetting=forgetting)
    verdict = judged(a_round, model, elsewhere(a_round, model, best, candidate), settings, recalls=recalls)
    assert verdict.decision == decision, verdict
    (cost,) = verdict.candidates[0].elsewhere
    assert (cost.number, cost.version, cost.images) == (2, 1, 8)
    assert (cost.better, cost.worse) == (candidate is GOOD, candidate is BAD)
    assert cost.lower <= cost.value <= cost.upper
    (check,) = [item for item in verdict.checks if item.name == "forgetting"]
    assert ("fog: worse than version 1" in check.detail) == (candidate is BAD)
    assert ("fog" in verdict.reason) == (decision == "rejected")


@pytest.mark.parametrize("norm", [True, False])
def test_nothing_is_better_elsewhere_without_the_nuclear_norm(a_round: Any, model: Any, norm: bool) -> None:
    found = elsewhere(a_round, model, {"accuracy": 0.75, "seed": 6}, GOOD)
    best = found.best.model_copy(update={"styled": None})
    candidate = found.candidates["candidate"].model_copy(update={"styled": None})
    if not norm:
        candidate = candidate.model_copy(update={"gram": best.gram, "marginal": best.marginal})
    found = found.model_copy(update={"best": best, "candidates": {"candidate": candidate}})
    (cost,) = judged(a_round, model, found, GateSettings()).candidates[0].elsewhere
    assert cost.better is norm and cost.detail.startswith(f"{2 + norm} of 3 votes won, 0 lost")


@pytest.mark.parametrize(("source", "better", "worse"), [(0.95, False, True), (0.6, True, False), (None, False, False)])
def test_the_labelled_condition_is_judged_by_true_miou(
    a_round: Any, model: Any, source: float | None, better: bool, worse: bool
) -> None:
    """The candidate is right on 85 % of source pixels; `source` is the best version's share, None: it is the same."""
    same = a_round(model(**BETTER)).scores.candidate
    best = same if source is None else a_round(model(source=source, seed=9)).scores.candidate
    found = ConditionScores(number=1, name="source", labelled=True, version=1, best=best)
    (cost,) = judged(a_round, model, found, GateSettings()).candidates[0].elsewhere
    assert (cost.better, cost.worse, cost.images, cost.labels) == (better, worse, 24, True)
    assert "mIoU on source" in cost.detail


@pytest.mark.parametrize(("weights", "worse"), [({}, False), (dict.fromkeys(NAMES[:4], 0.0), True)])
def test_a_class_that_counts_alone_is_forgotten_though_the_mean_rises(
    a_round: Any, model: Any, weights: dict[str, float], worse: bool
) -> None:
    best = a_round(model(source=0.5, seed=9)).scores.candidate
    found = ConditionScores(number=1, name="source", labelled=True, version=1, best=best)
    round_ = a_round(model(**{**BETTER, "source": 0.95, "forgets": (4,)}))
    scores = round_.scores.model_copy(update={"elsewhere": (found,)})
    settings = section(GateSettings, class_weights=weights)
    (cost,) = decide(round_.spec, scores, settings, NAMES, at=5.0).candidates[0].elsewhere
    assert (cost.better, cost.worse) == (not worse, worse)


@pytest.mark.parametrize(
    ("better", "labels", "version", "best", "made", "takes"),
    [
        (True, False, 1, 1, None, True),  # the released one, or one that served when the condition opened
        (True, False, 2, 2, 2, False),  # votes alone against the version that a round made there
        (True, True, 2, 2, 2, True),  # labels
        (True, False, 3, 3, 2, True),  # the one that a round made there is no longer the best
        (True, True, 1, 3, None, False),  # compared with another version than the best one
        (False, True, 1, 1, None, False),
    ],
)
def test_what_takes_over_another_condition(
    better: bool, labels: bool, version: int, best: int, made: int | None, takes: bool
) -> None:
    cost = ConditionCost(number=2, name="dusk", version=version, better=better, labels=labels, detail="3 of 3 votes")
    dusk = Condition(number=2, name="dusk", opened=0.0, last_seen=1.0, centroids=((0.0,),), best=best, made=made)
    assert takes_over(cost, dusk) is takes


@pytest.mark.parametrize(
    ("forgetting", "recalls", "readable", "allowed"),
    [
        ("recall", True, True, True),
        ("recall", False, True, False),
        ("recall", True, False, False),
        ("allow", True, True, False),
        ("veto", True, True, False),
    ],
)
def test_source_may_be_lost_only_while_a_kept_version_is_recalled(
    a_round: Any, model: Any, forgetting: Any, recalls: bool, readable: bool, allowed: bool
) -> None:
    forgetful = a_round(model(**{**BETTER, "source": 0.6}))
    best = a_round(model(source=0.85, seed=9)).scores.candidate if readable else None
    missing = "" if readable else "version 1 is damaged"
    found = ConditionScores(number=1, name="source", labelled=True, version=1, best=best, missing=missing)
    scores = forgetful.scores.model_copy(update={"elsewhere": (found,)})
    settings = GateSettings(forgetting=forgetting)
    verdict = decide(forgetful.spec, scores, settings, NAMES, at=5.0, recalls=recalls)
    checks = {item.name: item for item in verdict.checks}
    assert verdict.decision == ("accepted" if allowed else "rejected"), verdict
    assert checks["source_miou"].passed is checks["source_class_iou"].passed is allowed
    assert ("version 1 is kept" in checks["source_miou"].detail) == allowed
    assert checks["source_miou"].value > settings.source_drop


@pytest.mark.parametrize(
    "changes",
    [
        {"best": None, "missing": "version 1 is damaged"},
        {"best": ModelScores(version=1, finite=False)},
        {"best": ModelScores(version=1, finite=True)},
        {"candidates": {}},
        {"candidates": {"candidate": ModelScores(version=None, finite=False)}},
        {"candidates": {"candidate": ModelScores(version=None, finite=True, gram=[[[1.0]]])}},
    ],
)
@pytest.mark.parametrize("forgetting", ["veto", "recall"])
def test_what_cannot_be_compared_is_said_and_is_no_veto(
    a_round: Any, model: Any, changes: Any, forgetting: Any
) -> None:
    found = elsewhere(a_round, model, GOOD, BAD, **changes)
    verdict = judged(a_round, model, found, GateSettings(forgetting=forgetting))
    (cost,) = verdict.candidates[0].elsewhere
    assert verdict.decision == "accepted" and cost.value is None and cost.detail
    assert Verdict.model_validate_json(verdict.model_dump_json()) == verdict


def test_too_few_frames_of_the_newest_condition(a_round: Any, model: Any) -> None:
    round_ = a_round(model(**BETTER), frames=3)
    others = (KnownCondition(number=1, name="source", golden=(1,), best=1, labelled=True),)
    conditions = RoundConditions(newest=2, name="fog", frames=(1, 2, 3), others=others)
    spec = round_.spec.model_copy(update={"conditions": conditions, "holdout_frames": tuple(range(20))})
    assert spec.deciding_frames == (1, 2, 3)
    verdict = decide(spec, round_.scores, section(GateSettings, min_holdout=5), NAMES, at=1.0)
    assert verdict.decision == "inconclusive"
    assert verdict.reason == "3 hold-out frames of fog; the gate needs 5, 2 more"


def test_no_record_that_can_be_read_breaks_the_gate(a_round: Any, model: Any) -> None:
    """Fields are lost, emptied, shortened or NaN: the file is refused, or there is a verdict that says why."""
    round_ = a_round(model(**BETTER), frames=5, images=5)
    here = elsewhere(a_round, model, GOOD, BAD)
    labelled = here.model_copy(update={"labelled": True, "best": round_.scores.incumbent, "candidates": {}})
    others = {"student": round_.scores.incumbent}
    full = round_.scores.model_copy(update={"elsewhere": (here, labelled), "others": others})
    text, settings, rng = full.model_dump_json(), section(GateSettings, bootstrap=5), random.Random(4)
    read = 0
    for _ in range(30):
        values = json.loads(text)
        for _ in range(rng.randint(1, 3)):
            _damage(values, rng)
        try:
            scores = RoundScores.model_validate_json(json.dumps(values))
        except ValidationError:
            continue
        verdict = decide(round_.spec, scores, settings, NAMES, at=1.0)
        assert verdict.reason and verdict.candidates
        read += 1
    assert read > 4


def _damage(values: Any, rng: random.Random) -> None:
    """Change one place in nested JSON."""
    while True:
        keys = list(values) if isinstance(values, dict) else list(range(len(values)))
        if not keys:
            return
        key = rng.choice(keys)
        if isinstance(values[key], dict | list) and values[key] and rng.random() < 0.7:
            values = values[key]
            continue
        if rng.random() < 0.4:
            del values[key]
        else:
            values[key] = rng.choice([None, float("nan"), 7.0, -1, [], {}])
        return
