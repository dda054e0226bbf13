"""Evidence of probation: which frames and labels count, and what they decide; pure functions over drawn numbers."""

import pytest

from daemon.gate.frame_evidence import canary_losses, in_condition, looks_worse, loses, overstated
from daemon.gate.probation import judge
from storage.errors import StorageError
from storage.gate.comparisons import ComparisonScores
from storage.gate.conditions import Condition, Conditions
from storage.gate.probation import Probation
from storage.rounds.records import ImageCounts, ModelScores
from tests.daemon.gate.compared import model_of, on_labels, scores_of, with_labels

START = Probation(stage="watching", version=2, previous=1, since=5.0, after=8, reason="waits")


def test_a_frame_counts_against_the_version_with_the_smaller_norm_and_equal_ones_not_at_all() -> None:
    assert looks_worse(scores_of([0.6, 0.9, 0.7], [0.9, 0.6, 0.7])) == [True, False]
    broken = ComparisonScores(
        status="completed", frames=(1, 2), models=(ModelScores(version=2, finite=False), model_of(1, [0.9, 0.9]))
    )
    assert looks_worse(broken) == [True, True]
    with pytest.raises(StorageError, match="not finite numbers"):
        looks_worse(scores_of([0.6, float("nan")], [0.9, 0.9]))


def test_restyled_source_counts_by_its_labels() -> None:
    good, bad = ([[9, 8]], [[1, 2]], [[1, 2]]), ([[5, 4]], [[5, 6]], [[5, 6]])
    counts = [ImageCounts(tp=tp, fp=fp, fn=fn) for tp, fp, fn in (bad, good)]
    models = [ModelScores(version=n, finite=True, styled=item) for n, item in zip((2, 1), counts, strict=True)]
    assert loses(ComparisonScores(status="completed", models=tuple(models)), "styled") == [True]
    assert loses(ComparisonScores(status="completed", models=tuple(reversed(models))), "styled") == [False]
    assert loses(scores_of([0.6], [0.7]), "styled") == []
    second = ImageCounts(tp=[[9, 3]], fp=[[1, 7]], fn=[[1, 7]])
    pair = (models[0].model_copy(update={"styled": second}), models[1])
    mixed = ComparisonScores(status="completed", models=pair)
    assert loses(mixed, "styled", (1.0, 0.0)) == [], "the first class is as good, and only it counts"
    assert loses(mixed, "styled", (0.0, 1.0)) == [True]


@pytest.mark.parametrize(
    ("worse", "styled", "stage"),
    [
        ("1" * 8, "", "cooling_down"),
        ("1" * 4, "", "watching"),
        ("0" * 31, "", "watching"),
        ("0" * 32, "", "passed"),
        ("10" * 16, "", "passed"),
        ("0" * 12, "1" * 12, "cooling_down"),
        ("0" * 32, "10" * 16, "passed"),
        ("", "", "watching"),
    ],
)
def test_judgement(worse: str, styled: str, stage: str) -> None:
    record = START.model_copy(
        update={"worse": tuple(it == "1" for it in worse), "worse_styled": tuple(it == "1" for it in styled)}
    )
    judged = judge(record, 32, 0.98)
    assert judged.stage == stage
    assert "version 2 looks worse than version 1 on" in judged.reason


@pytest.mark.parametrize(
    ("losses", "overstated", "worse", "stage"),
    [
        ([0.1] * 7, 0.0, "", "cooling_down"),  # labels alone, before any frame
        ([0.1] * 5, 0.0, "", "watching"),
        ([0.1] * 5, 0.0, "1" * 4, "cooling_down"),  # and with half of the frames that it takes without
        ([0.1] * 7, 0.0, "0" * 31, "cooling_down"),  # against the frames
        ([-0.1] * 7, 0.0, "1" * 32, "passed"),
        ([-0.1] * 7, 0.0, "1" * 31, "watching"),
        ([-0.1] * 4, 0.0, "1" * 16, "cooling_down"),  # four are a factor, no more
        ([-0.1] * 4, 0.0, "1" * 8, "watching"),
        ([0.1, -0.1] * 5, 0.0, "1" * 12, "cooling_down"),
        ([0.1, -0.1] * 5, 0.4, "1" * 12, "watching"),  # frames of which the labels say that they overstate
        ([0.1, -0.1] * 5, 0.5, "1" * 32, "passed"),
    ],
)
def test_labels_decide_against_frames(losses: list[float], overstated: float, worse: str, stage: str) -> None:
    update = {"worse": tuple(it == "1" for it in worse), "canary_losses": tuple(losses), "overstated": overstated}
    judged = judge(START.model_copy(update=update), 32, 0.98)
    assert judged.stage == stage
    ahead = sum(loss > 0 for loss in losses)
    assert f"{ahead} of {len(losses)} canary images (IoU {-sum(losses) / len(losses):+.3f}" in judged.reason


def test_four_labels_never_decide_alone() -> None:
    record = START.model_copy(update={"canary_losses": (1.0,) * 4})
    assert judge(record, 32, 0.8).stage == "watching"
    assert judge(record.model_copy(update={"canary_losses": (1.0,) * 5}), 32, 0.8).stage == "cooling_down"


def test_canary_images_of_the_condition_say_what_is_lost_and_how_far_the_norm_overstates_it() -> None:
    new, old = on_labels([9, 9, 9, 0, 0], [0.6] * 5), on_labels([0, 5, 5, 5, 9], [0.9] * 5)
    scores = with_labels(new, old, [0.0, 1.0, 1.0, 1.0, 90.0])
    at = [Condition(number=n, name="c", opened=0, last_seen=0, centroids=((c,),)) for n, c in ((1, 0.0), (2, 10.0))]
    known = Conditions(released=1, threshold=11.0, given=2, conditions=tuple(at))
    assert canary_losses(scores).round(2).tolist() == [-0.82, -0.48, -0.48, 0.33, 0.82]
    assert overstated(scores) == pytest.approx(1.0 - 2 / 5)
    mine = in_condition(scores, known, 1)
    assert canary_losses(mine).round(2).tolist() == [-0.82, -0.48, -0.48, 0.33]
    assert overstated(mine) == pytest.approx(1.0 - 1 / 4)
    assert len(canary_losses(in_condition(scores, known, 2))) == 0
    assert in_condition(scores, known, 7) == in_condition(scores, None, 1) == scores
    broken = ModelScores(version=2, finite=False)
    assert canary_losses(with_labels(broken, old, [0.0] * 5)).tolist() == [1.0] * 5
    assert canary_losses(scores_of([0.6], [0.7])).tolist() == []
    with pytest.raises(StorageError, match="not one for each image"):
        canary_losses(with_labels(new, old, [0.0]))
