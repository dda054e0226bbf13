"""Conditions: found from bursts, the same in any order of observation, remembered by golden frames and a version."""

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.gate import ConditionsAdvanced, ConditionsSettings
from daemon.gate.conditions import SeenFrames, first_conditions, follow, merged, places, threshold_of
from storage.gate.conditions import Conditions

SETTINGS = ConditionsSettings(most=4, advanced=ConditionsAdvanced(burst_frames=4, reference_frames=8))
WORLDS = {"day": 0.0, "dusk": 20.0, "night": 40.0, "fog": 60.0, "snow": 80.0}


def seen(*runs: tuple[str, int], first: int = 1, every: int = 2, cameras: tuple[str, ...] = ("",)) -> SeenFrames:
    """Frames of a stream of runs (world, frames); one in `every` is held out; the `cameras` take turns."""
    rng = np.random.default_rng(0)
    styles = np.concatenate([rng.normal(WORLDS[world], 1.0, (count, 6)) for world, count in runs])
    ids = np.arange(first, first + len(styles))
    digests = [hashlib.sha256(str(number).encode()).hexdigest() for number in ids]
    return SeenFrames(ids, ids + 100.0, styles, ids % every == 0, digests, np.resize(np.array(cameras), len(ids)))


def known_after(frames: SeenFrames, serving: int = 1, golden: int = 3) -> Conditions:
    first = first_conditions(1, np.zeros((0, 6)), frames, SETTINGS, 50.0)
    assert first is not None
    return follow(first, frames, SETTINGS, serving, golden)


def test_a_burst_of_another_world_opens_a_condition_with_the_version_that_serves() -> None:
    known = known_after(seen(("day", 12), ("dusk", 6)), serving=7)
    assert [(item.number, item.name, item.best) for item in known.conditions] == [
        (1, "condition-1", 1), (2, "condition-2", 7),
    ]  # fmt: skip
    assert known.current == 2
    assert known_after(seen(("day", 12), ("dusk", 6), ("day", 4))).current == 1


def test_single_strangers_open_nothing() -> None:
    known = known_after(seen(("day", 12), ("dusk", 2), ("day", 4), ("night", 2), ("day", 2)))
    assert len(known.conditions) == 1
    mixed = [("dusk", 1), ("night", 1), ("fog", 1), ("snow", 1)] * 3
    assert len(known_after(seen(("day", 12), *mixed)).conditions) == 1, "frames of no one look"


@pytest.mark.parametrize(
    ("runs", "current"),
    [
        ((("dusk", 2), ("day", 2)), None),
        ((("day", 2), ("fog", 1), ("snow", 1)), 1),
        ((("day", 1), ("fog", 1), ("snow", 1), ("night", 1)), None),
    ],
    ids=["half of each of two conditions", "the edge of one", "mostly outside"],
)
def test_a_burst_is_of_the_condition_of_most_frames_that_are_of_any(runs, current: int | None) -> None:
    known = known_after(seen(("day", 12), ("dusk", 6), *runs))
    assert (len(known.conditions), known.current) == (2, current)


def test_frames_far_from_everything_change_the_condition_only_as_a_burst_that_opens_one() -> None:
    def current(*runs: tuple[str, int]) -> int | None:
        frames = seen(("day", 12), *runs)
        first = first_conditions(1, np.zeros((0, 6)), frames, SETTINGS, 50.0)
        assert first is not None
        return follow(first, frames, SETTINGS, 1, 3, far=2.0).current

    assert [current(), current(("night", 2)), current(("night", 2), ("fog", 2)), current(("night", 4))] == [1, 1, 1, 2]


def test_labelled_source_is_the_first_condition() -> None:
    source = seen(("day", 10)).styles
    known = first_conditions(3, source, seen(("dusk", 1)), SETTINGS, 50.0)
    assert known is not None and known.released == 3
    assert [(item.name, item.labelled, item.best) for item in known.conditions] == [("source", True, 3)]
    assert known.threshold == threshold_of(source, 0.999)


def test_nothing_is_known_before_the_reference_is_complete() -> None:
    assert first_conditions(1, np.zeros((0, 6)), seen(("day", 7)), SETTINGS, 50.0) is None


@given(st.lists(st.tuples(st.sampled_from(sorted(WORLDS)[:4]), st.integers(4, 9)), min_size=1, max_size=6))
@settings(deadline=None, max_examples=60)
def test_what_is_known_does_not_depend_on_when_the_frames_are_looked_at(runs: list[tuple[str, int]]) -> None:
    """One look at the end opens the conditions that a look after each frame opens, as long as none must merge."""
    roomy = SETTINGS.model_copy(update={"most": 16})  # a merge takes the one that is least used at that moment
    frames = seen(("day", 8), *runs)
    known = first_conditions(1, np.zeros((0, 6)), frames, roomy, 50.0)
    assert known is not None
    once = follow(known, frames, roomy, 1, 3)
    for count in range(8, len(frames.ids) + 1):
        part = frames.only(np.arange(len(frames.ids)) < count)
        known = follow(known, part, roomy, 1, 3)
    assert known.model_copy(update={"burst": ()}) == once.model_copy(update={"burst": ()})
    assert once.burst == known.burst[-len(once.burst) :] if once.burst else not known.burst


def test_golden_frames_are_held_out_ones_of_the_condition_and_stay_when_others_leave() -> None:
    frames = seen(("day", 12), ("dusk", 12))
    known = known_after(frames)
    day, dusk = known.conditions
    assert len(day.golden) == len(dusk.golden) == 3
    assert set(day.golden) <= {2, 4, 6, 8, 10, 12} and set(dusk.golden) <= {14, 16, 18, 20, 22, 24}
    kept = np.isin(frames.ids, day.golden)
    left = frames.only(kept | (frames.ids > 12))
    assert follow(known, left, SETTINGS, 1, 3).conditions[0].golden == day.golden


def test_a_burst_is_of_one_camera() -> None:
    """Two cameras take turns, one by day and one at night: each is in a condition, the whole stream is in none."""
    frames = seen(("day", 8), *[("day", 1), ("night", 1)] * 6, cameras=("east", "west"))
    known = known_after(frames)
    assert [item.cameras for item in known.conditions] == [{"east": 10, "west": 4}, {"west": 6}]
    assert known.cameras == {"east": 1, "west": 2} and known.current is None and known.burst == ()


def test_a_lost_golden_frame_is_replaced() -> None:
    frames = seen(("day", 12))
    known = known_after(frames)
    lost = known.conditions[0].golden[0]
    stay = frames.ids != lost
    left = frames.only(stay)
    golden = follow(known, left, SETTINGS, 1, 3).conditions[0].golden
    assert len(golden) == 3 and lost not in golden


def test_beyond_the_most_the_one_not_seen_for_longest_merges_into_its_neighbour() -> None:
    known = known_after(seen(("day", 8), ("dusk", 4), ("night", 4), ("day", 4), ("fog", 4), ("snow", 4)))
    assert [item.name for item in known.conditions] == ["condition-1", "condition-3", "condition-4", "condition-5"]
    assert follow(known, seen(("day", 8), ("dusk", 4), ("night", 4), ("day", 4), ("fog", 4), ("snow", 4)),
                  SETTINGS, 1, 3) == known, "its frames do not open it again"  # fmt: skip
    assert known.given == 5
    assert any(len(item.centroids) == 2 for item in known.conditions)


def test_merging_keeps_the_version_of_what_stays_and_the_centroids_of_both() -> None:
    known = known_after(seen(("day", 8), ("dusk", 4)), serving=9)
    one = merged(known, 2, 1)
    assert one.current == 1
    assert one.conditions[0].centroids == known.conditions[1].centroids + known.conditions[0].centroids
    assert one.conditions[0].best == 1
    with pytest.raises(ValueError, match="no two conditions 1 and 5"):
        merged(known, 1, 5)


def test_places_of_frames() -> None:
    known = known_after(seen(("day", 8), ("dusk", 4)))
    assert places(np.array([[0.5] * 6, [20.5] * 6, [500.0] * 6]), known).tolist() == [0, 1, -1]
