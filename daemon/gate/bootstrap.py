"""Paired bootstrap over images: how sure is it that the candidate beats the incumbent on a score?

Both models are scored on the same images; images are drawn with replacement, the same draw for both, and the
advantage is recomputed (Efron and Tibshirani 1993, percentile interval). Images are the unit, never pixels: the
pixels of one image agree with each other far too much to count as evidence one by one.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Statistic = Callable[[Floats], Floats]
"""Advantage of the candidate [resamples] for weights [resamples, images]; each row sums to one."""

_CHUNK = 128
"""Resamples computed at once; bounds memory for joint statistics with many classes."""


@dataclass(frozen=True, slots=True)
class Advantage:
    """How much better the candidate is; positive is better."""

    value: float
    """On all images."""
    lower: float
    """One-sided lower confidence bound."""
    upper: float
    """One-sided upper confidence bound."""


def paired_bootstrap(statistic: Statistic, images: int, *, confidence: float, resamples: int, seed: int) -> Advantage:
    """Value and one-sided bounds of `statistic` at `confidence` (0.5-1), over `images` images.

    Resamples in which the statistic is undefined (NaN) are left out. Deterministic under `seed`.
    """
    rng = np.random.default_rng(seed)
    weights = rng.multinomial(images, np.full(images, 1.0 / images), size=resamples) / images
    values = np.concatenate([statistic(weights[start : start + _CHUNK]) for start in range(0, resamples, _CHUNK)])
    values = values[~np.isnan(values)]
    value = float(statistic(np.full((1, images), 1.0 / images))[0])
    if values.size == 0 or np.isnan(value):
        return Advantage(0.0, 0.0, 0.0)
    lower, upper = np.quantile(values, [1.0 - confidence, confidence])
    return Advantage(value, float(lower), float(upper))
