"""False alarms and delays of the drift alarm on correlated streams, beside POEM's betting as published.

Scores are first-order autoregressive with correlation rho. The baseline of the same streams bets against the ECDF of
1,000 reference frames at every frame, alarms at wealth 1 / alpha and starts again.

    python benchmarks/gate_drift.py --streams 60 --frames 20000
"""

import argparse
import math
import statistics
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from daemon.gate.drift import looked
from storage.gate.drift import Drift

REFERENCE, BEFORE, AFTER = 1_000, 3_000, 6_000
"""Frames before the stream; unchanged frames before a change; frames after it."""
SHIFTS = (0.5, 1.0, 2.0)
"""Changes of the mean (standard deviations)."""
RAMP = 3_000
"""Frames over which the mean rises by the largest of them in a slow change."""
ALPHA = 0.01

Series = NDArray[np.float64]


def series(rho: float, length: int, rng: np.random.Generator) -> Series:
    """Return a stationary first-order autoregressive series with unit variance."""
    noise, values = rng.normal(size=length) * math.sqrt(1.0 - rho**2), np.empty(length)
    values[0] = rng.normal()
    for place in range(1, length):
        values[place] = rho * values[place - 1] + noise[place]
    return values


def ours(reference: Series, stream: Series, per_100k: float) -> list[int]:
    """Return the frames of `stream` at which the alarm is raised."""
    state, found = Drift(version=1, since=0.0), []
    for frame, value in enumerate(np.concatenate([reference, stream]), 1):
        alarms = state.alarms
        state = looked(state, frame, [(float(value) + 8.0) / 16.0], per_100k, 0.0)
        if state.alarms > alarms and frame > len(reference):
            found.append(frame - len(reference))
    return found


def published(reference: Series, stream: Series) -> list[int]:
    """Return the frames at which POEM's martingale with its published constants exceeds 1 / ALPHA."""
    ordered, found = np.sort(reference), []
    wealth, bet, squares = 0.0, 0.0, 0.0
    for frame, value in enumerate(stream, 1):
        rank = float(np.searchsorted(ordered, value)) / len(ordered)
        wealth += math.log1p(bet * (rank - 0.5))
        gradient = (rank - 0.5) / (1.0 + bet * (rank - 0.5))
        squares += gradient**2
        step = 2.0 / math.sqrt(3.0) * gradient / math.sqrt(squares) if squares else 0.0
        bet = min(max(bet + step, -1.8), 1.8)
        if wealth >= math.log(1.0 / ALPHA):
            found.append(frame)
            wealth, bet, squares = 0.0, 0.0, 0.0
    return found


def delay(alarms: Sequence[int]) -> float:
    """Return the frames from the change to the first alarm after it; infinite without one."""
    return min((at - BEFORE for at in alarms if at > BEFORE), default=math.inf)


def row(rho: float, streams: int, frames: int, per_100k: float) -> str:
    """Measure one correlation; return a row of the table."""
    rng = np.random.default_rng(round(1000 * rho))
    mine, theirs = [], []
    for _ in range(streams):
        reference, stream = series(rho, REFERENCE, rng), series(rho, frames, rng)
        mine.append(len(ours(reference, stream, per_100k)))
        theirs.append(len(published(reference, stream)))
    delays = []
    ramp = SHIFTS[-1] * np.minimum(np.arange(AFTER) / RAMP, 1.0)
    for change in (*SHIFTS, ramp):
        found = []
        for _ in range(max(streams // 3, 5)):
            stream = np.concatenate([series(rho, BEFORE, rng), series(rho, AFTER, rng) + change])
            found.append(delay(ours(series(rho, REFERENCE, rng), stream, per_100k)))
        seen = sum(map(math.isfinite, found))
        delays.append(f"{statistics.median(found):.0f} ({seen} of {len(found)})")
    scale = 100_000 / (streams * frames)
    cells = [f"{rho}", f"{sum(mine) * scale:.2f}", f"{sum(theirs) * scale:.1f}", *delays]
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--streams", type=int, default=60)
    parser.add_argument("--frames", type=int, default=20_000)
    parser.add_argument("--per-100k", type=float, default=1.0)
    options = parser.parse_args()
    print("| rho | false alarms per 100,000 | published | delay at 0.5 | at 1 | at 2 deviations | ramp to 2 |")
    print("|---|---|---|---|---|---|---|")
    for rho in (0.0, 0.5, 0.9):
        print(row(rho, options.streams, options.frames, options.per_100k), flush=True)


if __name__ == "__main__":
    main()
