"""Evidence that may be looked at after every frame: betting on a share, valid at any time.

The usual test at every look finds a difference sooner or later even where there is none. A test martingale does not:
by Ville's inequality the chance that it ever exceeds 1/a under the null hypothesis is at most a (Shafer 2021; Waudby-
Smith and Ramdas 2023, "Estimating means of bounded random variables by betting"). Pure and numpy only.
"""

import math

import numpy as np

from daemon.gate.bursts import Floats

ROUNDING = 1e-9
"""A series whose values differ by less than this share is constant."""
GRID = 2_000
"""Points at which the mixture over shares is integrated."""
SCALE = 0.03
"""A difference in IoU on one image that is staked on half as much as any could be (0-1)."""
STAKES = 200
"""Points at which the mixture over stakes is integrated."""


def evidence_of_majority(hits: int, misses: int, most: float = 0.5) -> float:
    """Return the e-value of `hits` and `misses` against "the share of hits is at most `most`" (0-1).

    It is the likelihood ratio of a uniform mixture over shares in (`most`, 1) to `most` (Robbins 1970), so no share has
    to be guessed. 1 without frames, and when no share exceeds `most`.
    """
    if most >= 1.0:
        return 1.0
    shares = np.linspace(most, 1.0, GRID, endpoint=False) + (1.0 - most) / (2 * GRID)
    logs = hits * np.log(shares / most) + misses * np.log((1.0 - shares) / (1.0 - most))
    largest = float(logs.max())
    return float(np.exp(logs - largest).mean() * math.exp(min(largest, 700.0)))


def evidence_of_sign(differences: Floats) -> float:
    """Return the e-value of `differences` [n] against "of each, minus is at least as likely as plus at its size".

    On each, tanh(a |d|) of the wealth is staked on plus: it grows by the factor 1 + tanh(a d), whose mean is at most 1
    under the null hypothesis (de la Pena 1999; Vovk and Wang 2024, "Nonparametric e-tests of symmetry"). So one large
    difference is not outvoted by a small one. The mean over a, with tanh(a `SCALE`) uniform in (0, 1), is an e-value
    too. It is at most 2^n, and 1 without differences.
    """
    stakes = np.arctanh((np.arange(STAKES) + 0.5) / STAKES) / SCALE
    return float(np.prod(1.0 + np.tanh(np.multiply.outer(stakes, differences)), axis=1).mean())


def share_bounds(hits: int, misses: int, confidence: float) -> tuple[float, float]:
    """Return lower and upper bound of the share of hits (0-1), valid at every look together with `confidence` (0-1).

    Confidence sequence from the uniform mixture over all shares: the shares whose e-value stays below
    1 / (1 - confidence).
    """
    shares = np.linspace(0.0, 1.0, GRID + 1)[1:-1]
    beta = math.lgamma(hits + 1) + math.lgamma(misses + 1) - math.lgamma(hits + misses + 2)
    logs = beta - hits * np.log(shares) - misses * np.log1p(-shares)
    possible = shares[logs < -math.log(1.0 - confidence)]
    lower, upper = float(possible.min()), float(possible.max())
    return (0.0 if hits == 0 else lower), (1.0 if misses == 0 else upper)


def spacing_of(series: Floats, most: int) -> int:
    """Return the distance at which values of `series` [N] in commit order count as separate evidence, 1 to `most`.

    It is the integrated autocorrelation time of a first-order process, ceil((1 + r) / (1 - r)) with the correlation r
    of neighbours; `most` when the series is shorter than four times that, because r is then not known.
    """
    if len(series) < 4:
        return most
    centred = series - series.mean()
    if float(np.abs(centred).max()) <= ROUNDING * float(np.abs(series).max()):
        return 1
    r = float((centred[1:] * centred[:-1]).sum() / (centred**2).sum())
    spacing = math.ceil((1.0 + max(r, 0.0)) / max(1.0 - r, 1e-6)) if r > 2.0 / math.sqrt(len(series)) else 1
    return most if 4 * spacing > len(series) else min(spacing, most)
