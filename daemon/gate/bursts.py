"""Bursts of neighbouring frames: how many independent ones the scores of correlated frames are worth. numpy only.

Neighbouring frames of one camera show nearly the same scene, so the bootstrap draws bursts of them (circular block
bootstrap, Politis and Romano 1992). The length of a burst follows from the measured correlation of neighbours
(Andrews, Econometrica 1991, for a first-order autoregressive series).
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Statistic = Callable[[Floats], Floats]
"""Advantage of the candidate [resamples] for weights [resamples, images]; each row sums to one."""

MOST_CORRELATION = 0.97
"""A larger estimate counts as this one, whose bursts are longer than any hold-out set."""
LEAST_FRAMES = 5
"""With fewer images the correlation cannot be estimated, and counts as zero."""


def neighbour_correlation(statistics: Sequence[Statistic], images: int) -> float:
    """Return the correlation of neighbouring images (0 to MOST_CORRELATION), the mean over `statistics`.

    For each it is the lag-1 autocorrelation r of the jackknife values over commit order. The estimate from few images
    is too low by (1 + 4 r) / n (Kendall 1954), so (n r + 1) / (n - 4) corrects it. A statistic that no image changes
    counts as zero.
    """
    if images < LEAST_FRAMES:
        return 0.0
    without = (1.0 - np.eye(images)) / (images - 1)  # row i: all images but the i-th
    found = [_lag_one(statistic(without)) for statistic in statistics]
    return float(np.clip(np.mean(found), 0.0, MOST_CORRELATION)) if found else 0.0


def _lag_one(values: Floats) -> float:
    apart = values - values.mean()
    spread = float(apart @ apart)
    if not np.isfinite(spread) or spread < 1e-18:
        return 0.0
    return (len(values) * float(apart[1:] @ apart[:-1]) / spread + 1.0) / (len(values) - 4)


def burst_length(correlation: float, images: int) -> int:
    """Return how many of `images` neighbours are drawn together, at least 1, for a correlation of neighbours (0-1)."""
    length = 1.1447 * (2.0 * correlation / (1.0 - correlation**2)) ** (2 / 3) * images ** (1 / 3)
    return int(np.clip(round(length), 1, max(1, images)))


def frames_needed(correlation: float, bursts: int) -> int:
    """Return the least number of frames that make `bursts` bursts at this correlation of neighbours (0-1)."""
    frames = bursts
    while frames < bursts * burst_length(correlation, frames):
        frames += 1
    return frames


def drawn_weights(images: int, burst: int, resamples: int, rng: np.random.Generator) -> Floats:
    """Return weights [resamples, images] of images drawn in bursts of `burst` neighbours; each row sums to one."""
    if burst == 1:
        return rng.multinomial(images, np.full(images, 1.0 / images), size=resamples) / images
    first = rng.integers(0, images, size=(resamples, -(-images // burst), 1))
    drawn = ((first + np.arange(burst)) % images).reshape(resamples, -1)[:, :images]
    counts = np.zeros((resamples, images))
    np.add.at(counts, (np.arange(resamples)[:, None], drawn), 1.0)
    return counts / images
