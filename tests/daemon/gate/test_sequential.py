"""Evidence that may be looked at after every frame: its error rate under the null hypothesis, its speed otherwise."""

import numpy as np
import pytest

from daemon.gate.sequential import evidence_of_majority, evidence_of_sign, share_bounds, spacing_of


def _series(rho: float, length: int, seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(size=length)
    values = [noise[0]]
    for step in noise[1:]:
        values.append(rho * values[-1] + np.sqrt(1 - rho**2) * step)
    return np.array(values)


def test_no_frame_is_no_evidence_and_known_values() -> None:
    assert evidence_of_majority(0, 0) == pytest.approx(1.0)
    # By hand: 2^n * 2 * integral of p^n over (1/2, 1) = 2 * (2^n - 1/2) / (n + 1)
    for hits in (1, 5, 8, 40):
        assert evidence_of_majority(hits, 0) == pytest.approx(2 * (2.0**hits - 0.5) / (hits + 1), rel=2e-3)
    assert evidence_of_majority(0, 30) < 0.1
    assert np.isfinite(evidence_of_majority(500_000, 0))


def test_a_share_of_one_half_is_hardly_ever_found_guilty_at_any_look() -> None:
    rng, guilty = np.random.default_rng(5), 0
    for _ in range(300):
        hits = np.cumsum(rng.random(400) < 0.5)
        guilty += any(evidence_of_majority(int(hits[n - 1]), n - int(hits[n - 1])) >= 50.0 for n in range(4, 401, 4))
    assert guilty / 300 <= 0.02


def test_a_clear_majority_is_found_within_a_dozen_frames() -> None:
    assert evidence_of_majority(8, 0) > 50
    assert evidence_of_majority(11, 1) > 50
    assert evidence_of_majority(16, 16) < 1
    assert evidence_of_majority(8, 0, 0.7) < 7, "a share that is overstated by 0.2 has to be higher"
    assert evidence_of_majority(60, 0, 0.7) > 50 and evidence_of_majority(60, 0, 1.2) == 1.0


def test_large_differences_on_six_labelled_images_are_evidence_and_five_cannot_be() -> None:
    assert evidence_of_sign(np.zeros(0)) == 1.0
    assert evidence_of_sign(np.full(6, 0.2)) > 50 > 2**5 > evidence_of_sign(np.full(5, 1.0)) > 20
    assert evidence_of_sign(np.full(8, 0.002)) < 2, "differences that are nothing"
    assert evidence_of_sign(np.array([0.1] * 9 + [-0.002])) > 50 > 20 > evidence_of_majority(9, 1)
    assert evidence_of_sign(np.array([0.1] * 8 + [-0.1] * 2)) < 10


def test_differences_of_either_sign_are_hardly_ever_evidence_whatever_their_sizes_and_however_many_came() -> None:
    rng, guilty = np.random.default_rng(7), 0
    for _ in range(200):
        drawn = rng.standard_t(2, 20) * 0.05  # heavy tails
        guilty += any(evidence_of_sign(drawn[:n]) >= 50.0 for n in range(5, 21))
    assert guilty / 200 <= 0.02


def test_bounds_hold_the_share_at_every_look_together() -> None:
    rng, missed = np.random.default_rng(6), 0
    for _ in range(200):
        hits = np.cumsum(rng.random(150) < 0.7)
        bounds = [share_bounds(int(hits[n - 1]), n - int(hits[n - 1]), 0.9) for n in range(5, 151, 5)]
        missed += any(not low <= 0.7 <= high for low, high in bounds)
    assert missed / 200 <= 0.1
    assert share_bounds(0, 0, 0.9) == (0.0, 1.0)


@pytest.mark.parametrize(("rho", "least", "most"), [(0.0, 1, 1), (0.5, 2, 5), (0.9, 10, 32)])
def test_spacing_follows_the_correlation_of_neighbours(rho: float, least: int, most: int) -> None:
    found = [spacing_of(_series(rho, 256, seed), 32) for seed in range(20)]
    assert least <= np.median(found) <= most


def test_spacing_of_too_few_or_constant_values() -> None:
    assert spacing_of(np.array([1.0, 2.0]), 32) == 32
    assert spacing_of(np.full(50, 0.1), 32) == 1
