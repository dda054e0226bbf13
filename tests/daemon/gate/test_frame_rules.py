"""Which frames a round may use: broken, repeated and foreign ones stay out, scenes of a new condition do not."""

import dataclasses
import threading
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from configs.round import LEFT_OUT, RoundAdvanced
from daemon.errors import NotEnoughFrames
from daemon.gate.frame_facts import facts_of, stored_facts
from daemon.gate.frame_rules import Judged, left_out, look_of
from daemon.rounds.runner import RoundContext, launch_round
from storage.buffer.catalog_records import FrameRecord
from tests.sections import changed

KNOWN = 40
Pixels = NDArray[np.uint8]
RNG = np.random.default_rng(0)


def scene(number: int, *, light: float = 1.0, haze: float = 0.0) -> Pixels:
    """A street of one camera: blue sky, brown houses of several heights, a grey road, and a little noise."""
    rng, frame = np.random.default_rng(number), np.empty((72, 96, 3))
    frame[:30], frame[30:] = (0.35, 0.5, 0.8), (0.4, 0.4, 0.42)
    for left in range(0, 96, 12):
        top = rng.integers(8, 26)
        frame[top:44, left : left + 12] = rng.uniform(0.8, 1.2) * np.array((0.5, 0.35, 0.25))
    frame = frame * light * (1.0 - haze) + haze * 0.7 + rng.normal(0.0, 0.01, frame.shape)
    return np.clip(255.0 * frame, 0, 255).astype(np.uint8)


def record(number: int, source: str = "", *, holdout: bool = False) -> FrameRecord:
    return FrameRecord(number, number, str(number), str(number), 0.0, 0.0, 72, 96, 72, 96, 0, holdout, source)


def reasons(frames: Sequence[Pixels], far: float = 1.0, **settings: object) -> Counter[str]:
    """Reasons for new frames after KNOWN ordinary scenes, which a round has used; none of those is ever left out."""
    known = [facts_of(scene(number)) for number in range(KNOWN)]
    facts = dict(enumerate([*known, *map(facts_of, frames)]))
    look = look_of(known)
    assert look is not None
    judged = Judged(
        [record(number) for number in facts], facts, [look], dict.fromkeys(facts, far), frozenset(range(KNOWN))
    )
    found = left_out(judged, RoundAdvanced.model_validate(settings), most_of_source=64)
    assert all(frame >= KNOWN for frame in found)
    return Counter(found.values())


def new(change: Callable[[Pixels], Pixels] = lambda frame: frame, **look: float) -> list[Pixels]:
    return [change(scene(100 + number, **look)) for number in range(20)]


def lined(frame: Pixels) -> Pixels:
    frame[::3] = (255, 0, 255)
    return frame


@pytest.mark.parametrize(
    ("frames", "expected"),
    [
        (new(), {}),
        (new(light=0.35), {}),
        (new(haze=0.6), {}),
        (new(light=0.12), {}),
        (new(lambda frame: RNG.integers(0, 256, frame.shape, np.uint8)), {"noise": 20}),
        (new(lambda frame: RNG.integers(0, 3, frame.shape, np.uint8)), {"blank": 20}),
        (new(lambda frame: np.full_like(frame, 200)), {"blank": 20}),
        (new(lambda frame: frame[..., ::-1]), {"fault": 20}),
        (new(lambda frame: frame[::-1]), {"fault": 20}),
        (new(lambda frame: 255 - frame), {"fault": 20}),
        (new(lined), {"lines": 20}),
        ([scene(7) + RNG.integers(0, 2, (72, 96, 3), np.uint8) for _ in range(20)], {"copies": 17}),  # one is known
        ([scene(100 + number, light=light) for number, light in enumerate(np.geomspace(0.2, 2, 20))], {"ramp": 20}),
    ],
    ids=[
        "same", "dusk", "fog", "night", "noise", "black", "one colour", "BGR", "upside down", "negative", "stuck lines",
        "copies", "brightness ramp",
    ],
)  # fmt: skip
def test_only_what_shows_no_new_scene_is_left_out(frames: list[Pixels], expected: dict[str, int]) -> None:
    assert reasons(frames) == expected
    assert not reasons(frames, leave_out=()), "a person may take all of them in"


def test_half_of_the_frames_is_garbage() -> None:
    noise = new(lambda frame: RNG.integers(0, 256, frame.shape, np.uint8))
    mixed = [frame for pair in zip(new(), noise, strict=True) for frame in pair]
    assert reasons(mixed) == {"noise": 20}


def test_a_frame_far_from_every_condition_is_left_out() -> None:
    assert reasons(new(), far=2.5) == {"far": 20}
    assert not reasons(new(), far=2.5, leave_out=[reason for reason in LEFT_OUT if reason != "far"])


FLICKER = np.exp(np.random.default_rng(2).normal(0.0, 0.07, 64))


@pytest.mark.parametrize(
    ("light", "least", "most"),
    [
        (np.repeat([0.2, 0.8], 32), range(0), range(0)),
        (np.repeat([0.2, 0.8, 0.3], 20), range(0), range(0)),
        (0.6 * FLICKER, range(0), range(0)),
        (np.repeat(np.geomspace(0.2, 0.8, 40), [20, *[1] * 38, 20]), range(20, 58), range(15, 63)),
        (np.geomspace(0.25, 3.0, 64) * FLICKER, range(64), range(64)),
        (np.geomspace(0.25, 3.0, 1500), range(0), range(0)),
    ],
    ids=["a step", "steps", "unlike scenes", "dawn, then still", "a ramp", "a slow dawn"],
)
def test_what_counts_as_a_ramp(light: NDArray[np.float64], least: range, most: range) -> None:
    """A few still frames beside a ramp are taken for a part of it."""
    one = facts_of(scene(1))
    facts = {place: dataclasses.replace(one, thumbnail=one.thumbnail * level) for place, level in enumerate(light)}
    settings = RoundAdvanced(leave_out=("ramp",))
    found = left_out(Judged([record(number) for number in facts], facts), settings, most_of_source=64)
    assert set(least) <= found.keys() <= set(most)


def test_facts_are_stored_whole() -> None:
    one, other = facts_of(scene(1)), stored_facts(facts_of(scene(1)).numbers())
    assert np.allclose(one.thumbnail, other.thumbnail, atol=1e-6) and other.thumbnail.shape == one.thumbnail.shape
    assert (other.detail, other.likeness, other.lines) == pytest.approx((one.detail, one.likeness, one.lines))


def test_a_flood_from_one_of_two_sources_gives_its_share() -> None:
    facts = {number: facts_of(scene(number)) for number in range(60)}
    records = [record(number, "gate" if number < 10 else "yard") for number in facts]
    found = left_out(Judged(records, facts), RoundAdvanced(), most_of_source=8)
    assert found == dict.fromkeys(range(10, 30), "flood"), "three quarters are 30 of 40, its newest"
    assert not left_out(Judged(records, facts), RoundAdvanced(), most_of_source=50), (
        "a slow second camera costs nothing"
    )
    alone = [record(number, "yard") for number in facts]
    assert not left_out(Judged(alone, facts), RoundAdvanced(), most_of_source=8)


def test_facts_of_the_smallest_images() -> None:
    for side in (1, 3, 40):
        assert np.isfinite(facts_of(np.zeros((side, side, 3), np.uint8)).thumbnail).all()


def test_a_round_uses_no_noise_and_says_why(world, registry, store):
    settings = changed(world.settings, round={"advanced": {"leave_out": LEFT_OUT}})
    context = RoundContext(settings, world.buffer, registry, threading.Event())
    with pytest.raises(NotEnoughFrames, match=r"round.advanced.leave_out leaves out: \d+ noise; drop"):
        launch_round(context, "manual")
    assert not store.numbers() and not world.buffer.leases() and len(world.buffer.records()) >= 4
