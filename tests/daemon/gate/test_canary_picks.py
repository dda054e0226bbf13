"""Which frames are suggested for labels, from tables: conditions take turns, the uncertain and disputed come first."""

from collections.abc import Sequence

import numpy as np
import pytest

from daemon.gate.canary_picks import disputed, pick_frames
from storage.buffer.observations import Observation
from storage.rounds.records import ModelScores, RoundScores


def seen(frame: int, entropy: float, area: Sequence[float] = (1.0, 0.0), place: float = 0.0) -> Observation:
    """An observed frame; `place` is where its embedding lies."""
    shares, embedding = np.array(area, np.float32), np.array([place, 0.0], np.float32)
    return Observation(frame, 1, 1, 1.0, entropy, 0.5, shares, embedding, np.zeros(2, np.float32))


def scores(incumbent: list[list[float]], candidate: list[list[float]]) -> RoundScores:
    models = {"incumbent": incumbent, "candidate": candidate}
    found = {name: ModelScores(version=1, finite=True, area=area) for name, area in models.items()}
    return RoundScores(status="completed", reason="", steps=1, seconds=1.0, **found)


def picked(observed: list[Observation], conditions: dict[int, int | None], count: int, *dispute: float) -> list[int]:
    return [pick.frame for pick in pick_frames(observed, conditions, np.array(dispute or (0.0, 0.0)), count)]


def test_the_uncertain_come_first_and_conditions_take_turns() -> None:
    observed = [seen(frame, entropy=frame / 10) for frame in range(1, 7)]
    conditions: dict[int, int | None] = {1: 2, 2: 2, 3: None, 4: 1, 5: 1, 6: 1}
    assert picked(observed, {}, 3) == [6, 5, 4]
    assert sorted(picked(observed, conditions, 3)) == [2, 3, 6]
    assert picked(observed, conditions, 9)[3:] == [1, 5, 4] and len(picked(observed, conditions, 9)) == 6


def test_frames_of_disputed_classes_come_first() -> None:
    observed = [seen(1, 0.5, (1.0, 0.0)), seen(2, 0.5, (0.2, 0.8)), seen(3, 0.5, (0.6, 0.4))]
    assert picked(observed, {}, 3, 0.0, 1.0) == [2, 3, 1]
    assert picked(observed, {}, 3, 1.0, 0.0) == [1, 3, 2]
    assert picked(observed, {}, 1, 1.0, 0.0, 0.0) == [1], "areas of another class list say nothing"


def test_near_twins_are_not_picked_together() -> None:
    observed = [seen(1, 0.9, place=0.0), seen(2, 0.8, place=0.01), seen(3, 0.5, place=9.0)]
    assert picked(observed, {}, 2) == [1, 3]
    assert picked([], {}, 2) == []


@pytest.mark.parametrize(
    ("found", "wanted"),
    [
        (None, [0.0, 0.0]),
        (scores([[0.5, 0.5]], [[0.5, 0.5]]), [0.0, 0.0]),
        (scores([[0.9, 0.1]], [[0.8, 0.0]]), [0.1 / 1.7, 1.0]),
        (scores([[0.9, 0.1]], [[0.8]]), [0.0, 0.0]),
        (scores([], []), [0.0, 0.0]),
    ],
)
def test_disputed_classes_are_those_of_which_candidate_and_incumbent_predict_different_areas(
    found: RoundScores | None, wanted: list[float]
) -> None:
    np.testing.assert_allclose(disputed(found, 2), wanted)
