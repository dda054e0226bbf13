"""Bursts: neighbouring frames of a correlated stream count as the evidence that they are."""

from typing import Any

import numpy as np
import pytest

from configs.gate import GateSettings
from daemon.gate.bursts import burst_length, drawn_weights, frames_needed, neighbour_correlation
from daemon.gate.decide import decide
from daemon.gate.votes import paired_bootstrap

NAMES = ("road", "building", "tree", "sky", "pole")


def _stream(rng: np.random.Generator, frames: int, rho: float) -> np.ndarray:
    noise = rng.normal(size=frames)
    values = [noise[0]]
    for fresh in noise[1:]:
        values.append(rho * values[-1] + np.sqrt(1 - rho**2) * fresh)
    return np.array(values)


@pytest.mark.parametrize(("rho", "frames", "most"), [(0.0, 32, 0.16), (0.5, 128, 0.16), (0.9, 64, 0.14)])
def test_equal_models_win_about_as_often_as_the_level_says(rho: float, frames: int, most: float) -> None:
    """Single frames as the unit win 22 % (rho 0.5) and 38 % (rho 0.9) of the votes, by chance alone."""
    rng, won, streams = np.random.default_rng(2), 0, 100
    for seed in range(streams):
        values = [_stream(rng, frames, rho) for _ in range(3)]
        burst = burst_length(neighbour_correlation([lambda w, v=v: w @ v for v in values], frames), frames)
        if frames / burst >= 4:
            bounds = {"confidence": 0.9, "resamples": 100, "seed": seed, "burst": burst}
            won += sum(paired_bootstrap(lambda w, v=v: w @ v, frames, **bounds).lower > 0 for v in values)
    assert won / (3 * streams) <= most


@pytest.mark.parametrize(("rho", "frames", "length"), [(0.0, 64, 1), (0.2, 8, 1), (0.5, 64, 6), (0.9, 64, 21)])
def test_length_follows_from_correlation(rho: float, frames: int, length: int) -> None:
    assert burst_length(rho, frames) == length
    needed = frames_needed(rho, 4)
    assert needed >= 4 * burst_length(rho, needed)
    assert needed == 4 or needed - 1 < 4 * burst_length(rho, needed - 1)


@pytest.mark.parametrize("values", [[0.1] * 12, [np.nan] * 12, [0.3, 0.1, 0.2, 0.4], []])
def test_what_shows_no_correlation_counts_as_none(values: list[float]) -> None:
    sample = np.array(values)
    assert neighbour_correlation([lambda w: w @ sample], len(values)) == 0.0


@pytest.mark.parametrize(("frames", "burst"), [(12, 1), (12, 5), (7, 7), (1, 1)])
def test_each_resample_draws_as_many_neighbours_as_there_are_frames(frames: int, burst: int) -> None:
    weights = drawn_weights(frames, burst, 50, np.random.default_rng(0))
    assert weights.shape == (50, frames)
    assert weights.sum(axis=1) == pytest.approx(np.ones(50))


def test_too_few_bursts_are_inconclusive_and_say_how_many_frames_are_missing(a_round: Any, model: Any) -> None:
    """A stream that changes once, half way: sixteen frames, but hardly more than two views."""
    round_ = a_round(model(accuracy=0.8, confidence=0.7, styled=0.78, seed=3), frames=16)
    wave = np.repeat([0.0, 0.2], 8)
    changes: dict[str, Any] = {}
    changes["flip_consistency"] = (0.7 + wave).tolist()
    changes["dropout_disagreement"] = (0.3 - wave).tolist()
    changes["gram"] = [
        (np.array(gram) + 100 * step * np.eye(5)).tolist()
        for gram, step in zip(round_.scores.candidate.gram, wave, strict=True)
    ]
    scores = round_.scores.model_copy(update={"candidate": round_.scores.candidate.model_copy(update=changes)})
    verdict = decide(round_.spec, scores, GateSettings(), NAMES, at=1.0)
    assert verdict.decision == "inconclusive"
    assert "independent bursts" in verdict.reason
    assert "more frames" in verdict.reason
