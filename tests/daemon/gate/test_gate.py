"""The gate from a table: which candidates serve, which do not, and the check that says why."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from configs.gate import GateSettings
from daemon.gate.bursts import drawn_weights
from daemon.gate.decide import decide
from daemon.gate.votes import diversity, estimated_error, paired_bootstrap
from storage.rounds.records import RoundScores
from storage.rounds.verdict import CHECKS, Check, Verdict
from tests.sections import section

NAMES = ("road", "building", "tree", "sky", "pole")
SETTINGS = GateSettings()
BETTER: dict[str, Any] = {"accuracy": 0.8, "confidence": 0.7, "styled": 0.78, "seed": 3}
WORSE: dict[str, Any] = {"accuracy": 0.6, "confidence": 0.5, "styled": 0.6, "seed": 3}


def judged(round_: Any, settings: GateSettings = SETTINGS, **changes: Any) -> Verdict:
    """The verdict on a round whose scores are changed first."""
    return decide(round_.spec, round_.scores.model_copy(update=changes), settings, NAMES, at=5.0)


def check(verdict: Verdict, name: str) -> Check:
    (found,) = [item for item in verdict.checks if item.name == name]
    return found


@pytest.mark.parametrize(
    ("candidate", "decision", "failed"),
    [
        (BETTER, "accepted", None),
        ({**BETTER, "source": 0.84}, "accepted", None),
        ({"seed": 2}, "inconclusive", None),
        ({"seed": 3}, "inconclusive", None),
        ({"confidence": 0.99, "seed": 2}, "inconclusive", None),
        ({"confidence": 0.99, "steadiness": 0.5, "styled": 0.6, "seed": 2}, "inconclusive", None),
        (WORSE, "rejected", None),
        ({"only": (0,), "confidence": 0.999}, "rejected", "vanished_class"),
        ({"only": (0, 1), "confidence": 0.999, "accuracy": 0.9}, "rejected", "vanished_class"),
        ({**BETTER, "hears": {3: 2}, "forgets": (3,)}, "rejected", "vanished_class"),
        ({**BETTER, "source": 0.7}, "rejected", "source_miou"),
        ({**BETTER, "forgets": (4,)}, "rejected", "source_class_iou"),
        ({"accuracy": 0.0, "confidence": 0.9}, "rejected", "agreement"),
    ],
    ids=[
        "better", "better but a little forgetful", "identical copy", "as good", "overconfident copy",
        "confident and wrong", "worse", "one class", "two classes, sure of them", "dead class", "forgot the source",
        "forgot one class", "leap",
    ],
)  # fmt: skip
@pytest.mark.parametrize(("frames", "images"), [(8, 16), (16, 32)])
def test_with_source(
    a_round: Any, model: Any, candidate: dict[str, Any], decision: str, failed: str | None, frames: int, images: int
) -> None:
    verdict = judged(
        a_round(model(**candidate), frames=frames, images=images), section(GateSettings, agreement_floor=0.3)
    )
    assert verdict.decision == decision, verdict
    names = [item.name for item in verdict.checks]
    assert names == [name for name in CHECKS if name in names], "known to metrics, and in their order"
    assert all(item.passed == (item.limit > 0) for item in verdict.checks if item.kind == "vote"), "the lower bound"
    if failed is not None:
        assert not check(verdict, failed).passed, verdict
        assert check(verdict, failed).detail in verdict.reason
    elif decision != "rejected":
        assert all(item.passed for item in verdict.checks if item.kind == "veto")


@pytest.mark.parametrize(
    ("candidate", "decision"),
    [
        (BETTER, "accepted"),
        ({"seed": 2}, "inconclusive"),
        ({"confidence": 0.99, "seed": 2}, "inconclusive"),
        (WORSE, "rejected"),
        ({"only": (0,), "confidence": 0.999}, "rejected"),
        ({"only": (0, 1), "confidence": 0.999, "accuracy": 0.9}, "rejected"),
        ({**BETTER, "hears": {3: 2}}, "rejected"),
    ],
)
def test_source_free(a_round: Any, model: Any, candidate: dict[str, Any], decision: str) -> None:
    verdict = judged(a_round(model(**candidate), frames=10, images=0))
    assert verdict.decision == decision, verdict
    assert not any(item.name.startswith(("source_", "vote_styled")) for item in verdict.checks)


def test_a_class_that_counts_alone_is_not_hidden_by_the_others(a_round: Any, model: Any) -> None:
    """The mIoU of all classes may rise while the one that matters is lost."""
    round_ = a_round(model(**{**BETTER, "styled": 0.9, "source": 0.95, "forgets": (4,)}))

    def ruled(source_drop: float, **weights: float) -> Verdict:
        advanced = SETTINGS.advanced.model_copy(update={"class_weights": weights, "source_class_drop": 1.0})
        return judged(round_, SETTINGS.model_copy(update={"source_drop": source_drop, "advanced": advanced}))

    only = dict.fromkeys(NAMES[:4], 0.0)
    assert check(ruled(0.5), "source_miou").passed
    assert "of the candidate 0.0000" in check(ruled(0.5, **only), "source_miou").detail
    assert not check(ruled(0.5, **only), "source_miou").passed
    alike, weighed = (check(ruled(1.0, **weights), "vote_styled_source").value for weights in ({}, only))
    assert alike is not None and weighed is not None and weighed < 0 < alike


def test_source_free_needs_every_vote(a_round: Any, model: Any) -> None:
    round_ = a_round(model(**BETTER), images=0)
    candidate = round_.scores.candidate.model_copy(
        update={"flip_consistency": round_.scores.incumbent.flip_consistency}
    )
    assert judged(round_, candidate=candidate).decision == "inconclusive"


@pytest.mark.parametrize("margin", [0.0, 0.025])
def test_without_labels_a_small_gain_in_diversity_confirms_itself(a_round: Any, model: Any, margin: float) -> None:
    """A little better by every vote; with labelled source the same votes are enough."""
    slightly, settings = model(accuracy=0.72, confidence=0.62), section(GateSettings, margin_without_labels=margin)
    vote = check(judged(a_round(slightly, images=0), settings), "vote_diversity")
    assert vote.limit is not None and 0.0 < vote.limit < 0.025, vote
    assert vote.passed == (margin == 0.0)
    assert ("without labels it needs over +0.0250" in vote.detail) == (margin > 0.0)
    assert check(judged(a_round(slightly), settings), "vote_diversity").passed, "source has labels"


@pytest.mark.parametrize("frames", [0, 3])
def test_too_few_frames_are_no_evidence_for_a_good_candidate(a_round: Any, model: Any, frames: int) -> None:
    verdict = judged(a_round(model(**BETTER), frames=frames))
    assert verdict.decision == "inconclusive"
    assert f"{frames} hold-out frames" in verdict.reason


def test_too_few_frames_do_not_excuse_forgetting(a_round: Any, model: Any) -> None:
    assert judged(a_round(model(source=0.5), frames=1)).decision == "rejected"


@pytest.mark.parametrize(
    ("changes", "failed"),
    [({"finite": False}, "finite"), ({"missing": ["decoder.head.weight"]}, "tensors")],
)
def test_what_is_no_network_is_rejected(a_round: Any, model: Any, changes: dict[str, Any], failed: str) -> None:
    round_ = a_round(model(**BETTER))
    verdict = judged(round_, candidate=round_.scores.candidate.model_copy(update=changes))
    assert verdict.decision == "rejected"
    assert not check(verdict, failed).passed


@pytest.mark.parametrize(("status", "decision"), [("failed", "rejected"), ("stopped", "inconclusive")])
def test_rounds_that_did_not_end(a_round: Any, model: Any, status: str, decision: str) -> None:
    round_ = a_round(model(**BETTER))
    scores = RoundScores(status=status, reason="non-finite loss at step 12", steps=12, seconds=3.0)
    verdict = decide(round_.spec, scores, SETTINGS, NAMES, at=5.0)
    assert verdict.decision == decision
    assert "non-finite loss at step 12" in verdict.reason
    assert not check(verdict, "completed").passed


def test_stopped_rounds_are_not_accepted_even_with_scores(a_round: Any, model: Any) -> None:
    assert judged(a_round(model(**BETTER)), status="stopped").decision == "inconclusive"


@pytest.mark.parametrize(
    ("same", "decision"),
    [
        (("dropout_disagreement", "marginal", "flip_consistency"), "accepted"),
        (("dropout_disagreement", "marginal", "styled"), "accepted"),
        (("dropout_disagreement", "marginal", "flip_consistency", "styled"), "inconclusive"),
        (("gram",), "inconclusive"),
    ],
    ids=["norm and restyled source", "norm and flip", "norm alone", "all but the norm"],
)
def test_with_source_the_norm_and_one_more_vote_must_be_won(
    a_round: Any, model: Any, same: tuple[str, ...], decision: str
) -> None:
    round_ = a_round(model(**BETTER))
    incumbent, candidate = round_.scores.incumbent, round_.scores.candidate
    as_good = candidate.model_copy(update={name: getattr(incumbent, name) for name in same})
    verdict = judged(round_, candidate=as_good)
    assert verdict.decision == decision, verdict.reason
    assert ("vote_diversity among them" in verdict.reason) == (same == ("gram",))
    if decision == "accepted":
        three = judged(round_, section(GateSettings, votes_with_source=3), candidate=as_good)
        assert three.decision == "inconclusive", "a setting of its own"


def test_restyled_source_may_never_be_lost(a_round: Any, model: Any) -> None:
    verdict = judged(a_round(model(**{**BETTER, "styled": 0.5})))
    assert verdict.decision == "inconclusive"
    assert verdict.reason.endswith("2 needed; vote_styled_source is lost")


def test_broken_incumbent_is_no_yardstick_for_vanished_classes(a_round: Any, model: Any) -> None:
    """The incumbent sees poles in all the sky; the candidate sees hardly any, and knows poles on source images."""
    broken = model(hears={3: 4, 2: 4}, accuracy=0.6, styled=0.6, seed=2)
    candidate = model(**{**BETTER, "hears": {4: 0}})
    round_ = a_round(candidate, broken)
    assert np.mean(round_.scores.incumbent.area, axis=0)[4] > 0.2
    assert judged(round_).decision == "accepted"
    assert not check(judged(a_round(replace(candidate, forgets=(4,)), broken)), "vanished_class").passed


def test_class_that_the_reference_does_not_know_may_vanish(a_round: Any, model: Any) -> None:
    round_ = a_round(model(**{**BETTER, "hears": {4: 0}}), images=0)
    assert not check(judged(round_), "vanished_class").passed
    reference = [0.39, 0.29, 0.21, 0.11, 0.0]
    assert check(judged(round_, reference_marginal=reference), "vanished_class").passed


def test_rare_class_seen_everywhere_is_measured_by_the_reference(a_round: Any, model: Any) -> None:
    """Source-free: the incumbent gives 20 % to poles, the reference 3 %; the 0.4 % left are little, not nothing."""
    round_ = a_round(model(**{**BETTER, "hears": {4: 0}}), model(hears={2: 4}, seed=2), images=0)
    area = [[*row[:4], 0.004] for row in round_.scores.candidate.area]
    verdict = judged(round_, candidate=round_.scores.candidate.model_copy(update={"area": area}))
    assert check(verdict, "vanished_class").passed
    assert not check(judged(round_), "vanished_class").passed


def test_class_drop_in_one_image_is_chance(a_round: Any, model: Any) -> None:
    """The pole of one image among sixteen is lost: a large drop of the sum, but not a significant one."""
    round_ = a_round(model(**BETTER), images=16)
    scores = round_.scores.model_copy(deep=True)
    for counts in (scores.released.source, scores.candidate.source):
        for image in range(16):
            counts.tp[image][4], counts.fn[image][4], counts.fp[image][4] = (2 if image in (1, 2, 3) else 0), 0, 0
    scores.released.source.tp[0][4] = 50
    scores.candidate.source.fn[0][4] = 50
    verdict = decide(round_.spec, scores, SETTINGS, NAMES, at=5.0)
    assert check(verdict, "source_class_iou").value > SETTINGS.advanced.source_class_drop
    assert check(verdict, "source_class_iou").passed


def _nan_area(scores: RoundScores) -> None:
    scores.candidate.area[0][0] = float("nan")


def _short_list(scores: RoundScores) -> None:
    scores.candidate.dropout_disagreement.pop()


def _ragged_counts(scores: RoundScores) -> None:
    scores.candidate.styled.tp[0].pop()


def _other_images(scores: RoundScores) -> None:
    for kind in (scores.released.source.tp, scores.released.source.fp, scores.released.source.fn):
        kind.pop()


@pytest.mark.parametrize("damage", [_nan_area, _short_list, _ragged_counts, _other_images])
def test_scores_that_do_not_belong_together(a_round: Any, model: Any, damage: Any) -> None:
    round_ = a_round(model(**BETTER))
    scores = round_.scores.model_copy(deep=True)
    damage(scores)
    verdict = decide(round_.spec, scores, SETTINGS, NAMES, at=5.0)
    assert verdict.decision == "inconclusive"
    assert "run the round again" in verdict.reason


def test_configured_source_that_was_not_scored_is_not_overlooked(a_round: Any, model: Any) -> None:
    round_ = a_round(model(**BETTER), images=0)
    spec = round_.spec.model_copy(update={"settings": {"source": {"images": "x"}}})
    verdict = decide(spec, round_.scores, SETTINGS, NAMES, at=5.0)
    assert verdict.decision == "inconclusive"
    assert "labelled source" in verdict.reason


def test_incumbent_that_is_not_finite(a_round: Any, model: Any) -> None:
    round_ = a_round(model(**BETTER))
    verdict = judged(round_, incumbent=round_.scores.incumbent.model_copy(update={"finite": False}))
    assert verdict.decision == "inconclusive"
    assert "roll back" in verdict.reason


def test_candidates_of_equal_quality_are_rarely_accepted(a_round: Any, model: Any) -> None:
    """A false accept of a candidate that is no better, by the noise of eight frames alone."""
    settings = section(GateSettings, bootstrap=200)
    verdicts = [
        judged(a_round(model(seed=100 + n), frames=8, images=16, number=n), settings).decision for n in range(60)
    ]
    assert verdicts.count("accepted") <= 2


@pytest.mark.parametrize(
    ("first", "others", "chosen", "decision"),
    [
        (BETTER, {"student": WORSE}, "teacher", "accepted"),
        (WORSE, {"student": BETTER, "average_50": {"seed": 3}}, "student", "accepted"),
        ({"source": 0.5}, {"average_50": BETTER}, "average_50", "accepted"),
        (BETTER, {"student": {**BETTER, "accuracy": 0.95, "confidence": 0.9, "styled": 0.9}}, "student", "accepted"),
        (WORSE, {"student": {"seed": 3}}, "teacher", "rejected"),
        ({"seed": 2}, {"student": WORSE}, "teacher", "inconclusive"),
    ],
    ids=["first", "student", "average saves what the teacher forgot", "best of two", "none: worse", "none: as good"],
)
def test_the_best_candidate_that_passes_is_accepted(
    a_round: Any, model: Any, first: Any, others: dict[str, Any], chosen: str, decision: str
) -> None:
    round_ = a_round(model(**first))
    found = {name: a_round(model(**values)).scores.candidate for name, values in others.items()}
    verdict = judged(round_, name="teacher", others=found)
    assert (verdict.candidate, verdict.decision) == (chosen, decision), verdict
    assert verdict.reason.startswith(f"{chosen}: ")
    assert [item.name for item in verdict.candidates] == ["teacher", *others]
    own = {item.name: item for item in verdict.candidates}[chosen]
    assert set(own.passed) | set(own.failed) == {item.name for item in verdict.checks}
    assert Verdict.model_validate_json(verdict.model_dump_json()) == verdict


@pytest.mark.parametrize("name", ["../../serving", "", "A", "a-b", "a/b"])
def test_a_candidate_cannot_be_named_like_a_path(a_round: Any, model: Any, name: str) -> None:
    scores = a_round(model(**BETTER)).scores
    text = scores.model_dump_json().replace(
        '"others":{}', f'"others":{{"{name}":{scores.candidate.model_dump_json()}}}'
    )
    with pytest.raises(ValueError, match="should match pattern"):
        RoundScores.model_validate_json(text)


def test_same_scores_same_verdict(a_round: Any, model: Any) -> None:
    round_ = a_round(model(**BETTER))
    assert judged(round_) == judged(round_)
    assert judged(round_).at == 5.0


def test_verdict_survives_its_file(a_round: Any, model: Any) -> None:
    """Scores and verdict pass through JSON between processes: no number is lost, no NaN gets in."""
    round_ = a_round(model(**BETTER))
    scores = RoundScores.model_validate_json(round_.scores.model_dump_json())
    verdict = decide(round_.spec, scores, SETTINGS, NAMES, at=5.0)
    assert verdict == judged(round_)
    assert Verdict.model_validate_json(verdict.model_dump_json()) == verdict


def test_joint_nuclear_norm_follows_from_gram_matrices() -> None:
    rng = np.random.default_rng(0)
    images = [rng.dirichlet(np.ones(5) * 0.3, size=50) for _ in range(4)]
    grams = [(rows.T @ rows).tolist() for rows in images]
    drawn = [0, 2, 2, 3]
    weights = np.bincount(drawn, minlength=4) / 4
    joint = np.concatenate([images[n] for n in drawn])
    expected = np.linalg.norm(joint, "nuc") / np.sqrt(len(joint) * 5)
    assert diversity(grams)(weights[None])[0] == pytest.approx(expected, rel=1e-9)


def test_nuclear_norm_lies_between_collapse_and_certainty() -> None:
    sure = np.eye(5) * 10
    collapsed = np.zeros((5, 5))
    collapsed[0, 0] = 50
    everything = np.ones((1, 1))
    assert diversity([sure.tolist()])(everything)[0] == pytest.approx(1.0)
    assert diversity([collapsed.tolist()])(everything)[0] == pytest.approx(1 / np.sqrt(5))


@pytest.mark.parametrize(
    ("disagreement", "marginal", "reference", "expected"),
    [
        (0.19, [0.5, 0.3, 0.2], [0.5, 0.3, 0.2], 0.2),
        (0.09, [0.5, 0.5, 0.0], [1 / 3] * 3, 0.1 / (np.log(2) / np.log(3)) ** 3),
        (0.09, [0.5, 0.5, 0.0], [], 0.1 / (np.log(2) / np.log(3)) ** 3),
        (0.09, [0.5, 0.5, 0.0], [1.0, 0.0, 0.0], 0.1 / (np.log(2) / np.log(3)) ** 3),
        (0.09, [1 / 3] * 3, [0.8, 0.1, 0.1], 0.1),
        (0.0, [1.0, 0.0, 0.0], [0.5, 0.3, 0.2], 2 / 3),
    ],
    ids=["same mix", "fewer classes", "no reference", "empty reference", "evener than the reference", "one class"],
)
def test_estimated_error(disagreement: float, marginal: list[float], reference: list[float], expected: float) -> None:
    estimate = estimated_error([disagreement], [marginal], reference)(np.ones((1, 1)))
    assert estimate[0] == pytest.approx(expected, rel=1e-6)


def test_bootstrap_bounds_hold_the_truth_as_often_as_they_say() -> None:
    """One-sided 90 % lower bounds of a mean of 16: the truth (0) lies above about 90 of 100 of them."""
    rng = np.random.default_rng(0)
    below = 0
    for seed in range(200):
        sample = rng.normal(0.0, 1.0, 16)
        bound = paired_bootstrap(lambda weights, s=sample: weights @ s, 16, confidence=0.9, resamples=300, seed=seed)
        assert bound.lower <= bound.value <= bound.upper
        below += bound.lower <= 0.0
    assert 165 <= below <= 192


def test_a_resample_that_is_drawn_again_costs_nothing() -> None:
    rows, values = list[int](), np.array([0.1, 0.2, 0.4, 0.8])

    def counted(weights: np.ndarray) -> np.ndarray:
        rows.append(len(weights))
        return weights @ values

    found = paired_bootstrap(counted, 4, confidence=0.9, resamples=1000, seed=1)
    assert sum(rows) == 35 + 1, "multisets of 4 of 4 images, and the value itself"
    drawn = drawn_weights(4, 1, 1000, np.random.default_rng(1)) @ values
    spread = (np.quantile(drawn, [0.1, 0.9]) - values.mean()) * np.sqrt(4 / 3)
    assert found.lower == pytest.approx(values.mean() + spread[0]) and found.upper == pytest.approx(
        values.mean() + spread[1]
    )
