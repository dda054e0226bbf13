"""What a comparison says about a recall: pure, from drawn scores."""

import pytest

from daemon.gate.recall import judge_recall
from storage.gate.comparisons import ComparisonScores
from storage.rounds.records import ImageCounts, ModelScores
from tests.daemon.gate.test_recall import drawn_model, drawn_scores


@pytest.mark.parametrize(
    ("scores", "holds"),
    [
        (drawn_scores(0.6, 0.9), True),
        (drawn_scores(0.9, 0.6), False),
        (drawn_scores(0.7, 0.7), False),
        (drawn_scores(0.6, 0.9, frames=4), False),
        (drawn_scores(0.7, 0.7, source=(5, 9)), True),
        (drawn_scores(0.6, 0.9, source=(9, 5)), False),
        (drawn_scores(0.6, 0.9, source=(5, 9)), True),
    ],
)
def test_the_evidence_that_a_recall_needs(scores: ComparisonScores, holds: bool) -> None:
    assert judge_recall(scores, 0.95, known=False).version == (1 if holds else None)


@pytest.mark.parametrize(
    ("serving", "best", "images", "known", "version"),
    [
        (9, 5, 6, False, None),  # labels against the norm, which is for version 1 on all 12 frames
        (9, 5, 6, True, None),
        (5, 9, 6, False, 1),
        (9, 5, 1, False, None),  # one is a veto
        (9, 5, 1, True, None),
        (5, 9, 1, False, 1),
        (7, 7, 6, False, 1),
    ],
)
def test_canary_labels_decide_or_veto_a_recall(
    serving: int, best: int, images: int, known: bool, version: int | None
) -> None:
    def on_labels(right: int) -> ModelScores:
        wrong = [[10 - right]] * images
        counts = ImageCounts(tp=[[right]] * images, fp=wrong, fn=wrong)
        return ModelScores(version=None, finite=True, canary=counts)

    more = {"canary": (on_labels(serving), on_labels(best)), "canary_styles": [[0.0]] * images}
    judged = judge_recall(drawn_scores(0.6, 0.9).model_copy(update=more), 0.95, known=known)
    assert judged.version == version
    assert judged.open == (images == 1 and version is None), "few labels veto, and make no other version the best"


def test_few_labels_for_the_other_side_do_not_help_what_the_norm_is_against() -> None:
    counts = [ImageCounts(tp=[[n]], fp=[[9 - n]], fn=[[9 - n]]) for n in (1, 8)]
    labelled = tuple(ModelScores(version=None, finite=True, canary=item) for item in counts)
    more = {"canary": labelled, "canary_styles": [[0.0]]}
    assert judge_recall(drawn_scores(0.9, 0.6).model_copy(update=more), 0.95, known=False).version is None


def test_of_several_challengers_the_one_that_no_other_beats() -> None:
    models = tuple(
        drawn_model(version, confidence, 12) for version, confidence in ((4, 0.6), (1, 0.7), (2, 0.9), (3, 0.8))
    )
    scores = ComparisonScores(status="completed", frames=tuple(range(12)), models=models)
    assert judge_recall(scores, 0.95, known=False) == (
        2,
        False,
        "version 2 is better on 12 of 12 frames by the nuclear norm",
    )


def test_steadiness_counts_beside_the_norm_and_never_against_it() -> None:
    def scores(norm: float, flip: float) -> ComparisonScores:
        steady = {"flip_consistency": [flip] * 12, "dropout_disagreement": [1.0 - flip] * 12}
        best = drawn_model(1, norm, 12).model_copy(update=steady)
        return ComparisonScores(status="completed", frames=tuple(range(12)), models=(drawn_model(2, 0.7, 12), best))

    assert judge_recall(scores(0.7, 0.99), 0.95, known=False).version == 1
    assert judge_recall(scores(0.6, 0.99), 0.95, known=False).version is None
    assert judge_recall(scores(0.8, 0.5), 0.95, known=False).version == 1, "the mean of the evidence decides"


def test_the_best_version_of_a_condition_serves_unless_another_is_better_beyond_chance() -> None:
    assert judge_recall(drawn_scores(0.7, 0.7), 0.95, known=True).version == 1
    assert judge_recall(drawn_scores(0.9, 0.6, frames=4), 0.95, known=True).version == 1
    assert judge_recall(drawn_scores(0.9, 0.6), 0.95, known=True) == (
        None,
        False,
        "version 1 is better on 0 of 12 frames by the nuclear norm: not enough",
    )
    assert judge_recall(drawn_scores(0.6, 0.9, frames=4), 0.95, known=False).open
