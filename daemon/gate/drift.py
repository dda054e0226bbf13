"""Drift: an alarm with a known rate of false ones on frames that are alike.

A score of each look (thinned, because neighbours are alike) is ranked among all earlier ones. While nothing changes the
ranks are uniform, whatever the distribution: conformal p-values (Vovk et al. 2005). A bet on the next rank grows when
ranks become high or low; its size follows scale-free online gradient descent (POEM, arXiv 2408.07511, section 3, whose
fixed reference of 1,000 frames is replaced: a finite reference is never quite right, and the bets find that out). The
Shiryaev-Roberts sum of the bets exceeds a level A, with nothing changed, after A looks on average at the earliest.
Pure but for the rule at the end; numpy only.
"""

import math
from collections.abc import Sequence

import numpy as np

from daemon.gate.conditions import distances
from daemon.gate.loop import GateContext
from daemon.gate.sequential import spacing_of
from daemon.runtime.logs import get_logger
from storage import durable
from storage.buffer.observations import Observation, Observations
from storage.durable.record import read_record
from storage.gate.conditions import Conditions
from storage.gate.drift import Drift, DriftBet

BINS = 256
"""Bins of a score: ranks within a bin are drawn, so they stay exact."""
LEARN = 64
"""Frames that say how alike neighbours are, before the first bet."""
MOST_SPACING = 64
"""Largest distance between two looks (frames)."""
SAFETY = 2
"""Factor on the autocorrelation time: measured, without it correlated frames raise three times the alarms allowed."""
LEVEL_MARGIN = 2.0
"""Factor on the level: its bound holds for the mean number of looks, so half of all streams would be above it."""
MOST_FRACTION = 1.8
"""Largest share of the wealth that is bet; at 2 one look could lose all."""
RECENT, FOREIGN = 64, 8
"""Looks that are remembered, and the most foreign of them that are kept with an alarm."""
FAR = 4.0
"""Style distance at which the scale of the score ends (thresholds of a condition)."""

log = get_logger(__name__)


def looked(state: Drift, frame: int, scores: Sequence[float], per_100k: float, now: float) -> Drift:
    """Return the state after frame `frame` with its scores (each 0-1). An alarm starts it afresh.

    The order of frames is free: the observer sees the newest ones of a backlog first. `per_100k`: false alarms allowed
    in 100,000 frames. `now`: Unix time (seconds).
    """
    if not all(math.isfinite(score) for score in scores):
        return state
    if state.stage == "learning":
        learned, frames = (*state.learned, tuple(scores)), (*state.learned_frames, frame)
        state = state.model_copy(update={"learned": learned, "learned_frames": frames})
        return _watching(state, per_100k) if len(learned) >= LEARN else state
    if any(abs(frame - seen) < state.spacing for seen, _ in state.recent):
        return state
    gain, foreign, bets = 0.0, 0.0, []
    for place, (bet, score) in enumerate(zip(state.bets, scores, strict=True)):
        rank, after = _ranked(bet, score, np.random.default_rng([frame, place]).random())
        gain += (1.0 + bet.fraction * (rank - 0.5)) / len(state.bets)
        foreign = max(foreign, abs(2.0 * rank - 1.0))
        bets.append(after)
    evidence = (state.evidence + 1.0) * gain
    update = {
        "looks": state.looks + 1,
        "bets": tuple(bets),
        "evidence": evidence,
        "recent": (*state.recent, (frame, foreign))[-RECENT:],
    }
    state = state.model_copy(update=update)
    return _alarmed(state, frame, now) if evidence >= state.level else state


def _ranked(bet: DriftBet, score: float, drawn: float) -> tuple[float, DriftBet]:
    """Return the rank (0-1) of a score among all earlier ones, ties drawn, and the bet after it."""
    place = min(int(min(max(score, 0.0), 1.0) * BINS), BINS - 1)
    below, same, total = sum(bet.counts[:place]), bet.counts[place], sum(bet.counts)
    rank = (below + drawn * (same + 1)) / (total + 1)
    gradient = (rank - 0.5) / (1.0 + bet.fraction * (rank - 0.5))
    squares = bet.squares + gradient**2
    step = 2.0 / math.sqrt(3.0) * gradient / math.sqrt(squares) if squares > 0.0 else 0.0
    fraction = min(max(bet.fraction + step, -MOST_FRACTION), MOST_FRACTION)
    counts = (*bet.counts[:place], same + 1, *bet.counts[place + 1 :])
    return rank, DriftBet(counts=counts, fraction=fraction, squares=squares)


def _watching(state: Drift, per_100k: float) -> Drift:
    """Return the state with the spacing that the learned frames ask for, and those of them at that spacing counted."""
    order = np.argsort(state.learned_frames)
    series = np.array(state.learned, np.float64)[order]
    apart = [spacing_of(column, MOST_SPACING) for column in series.T]
    spacing = 1 if max(apart) == 1 else min(SAFETY * max(apart), MOST_SPACING)
    bets = []
    for column in series[::spacing].T:
        places = np.minimum((np.clip(column, 0.0, 1.0) * BINS).astype(np.int64), BINS - 1)
        bets.append(DriftBet(counts=tuple(np.bincount(places, minlength=BINS).tolist())))
    level = max(LEVEL_MARGIN * 100_000.0 / per_100k / spacing, 1.0)
    update = {
        "stage": "watching",
        "spacing": spacing,
        "learned": (),
        "learned_frames": (),
        "recent": tuple((state.learned_frames[place], 0.0) for place in order[::spacing]),
        "bets": tuple(bets),
        "level": level,
    }
    return state.model_copy(update=update)


def _alarmed(state: Drift, frame: int, now: float) -> Drift:
    looks = sorted((item for item in state.recent if item[1] > 0.0), key=lambda item: -item[1])
    foreign = [frame for frame, _ in looks[:FOREIGN]]
    reason = (
        f"the stream changed: evidence {state.evidence:.0f} after {state.looks} looks, every {state.spacing} frames, "
        f"under version {state.version}"
    )
    return Drift(
        version=state.version,
        since=now,
        after=frame,
        upto=state.upto,
        alarms=state.alarms + 1,
        last_alarm=now,
        reason=reason,
        foreign=tuple(foreign),
    )


class DriftRule:
    """A rule of the gate: raises the alarm, which the schedule of rounds and people look at."""

    def step(self, context: GateContext) -> None:
        """Look at the frames that the serving version was observed on. Raises StorageError."""
        settings, serving = context.settings.drift, context.registry.serving()
        if settings.false_alarms_per_100k == 0.0 or serving is None or not context.layout.observations.exists():
            return
        before = read_record(context.layout.drift, Drift, f"; remove {context.layout.drift}")
        state = before or Drift(version=serving.version, since=context.now)
        if state.version != serving.version:
            kept = state.model_dump(include={"alarms", "last_alarm", "size", "reason", "foreign"})
            newest = context.buffer.catalog.newest_id()
            state = Drift(version=serving.version, since=context.now, after=newest, upto=newest, **kept)
        known = context.conditions.read()
        if context.settings.conditions.advanced.enabled and (
            known is None or known.released != context.registry.released(serving.version)
        ):
            return  # style has no scale yet: its first values would look like a change
        state = self._looked(context, state, known)
        if state != before:
            durable.write_record(context.layout.drift, state)

    def _looked(self, context: GateContext, state: Drift, known: Conditions | None) -> Drift:
        """Look at every frame that was observed since the last step, also those of a backlog; each once."""
        with Observations.open(context.layout.observations, writable=False) as observations:
            seen = observations.observed()
            fresh = [*observations.get(state.missed), *observations.after(state.upto)]
        if len(state.learned) != len(state.learned_frames):  # of an earlier mfmd
            state = state.model_copy(update={"learned": (), "learned_frames": ()})
        if not fresh:
            return state
        if state.home is None and known is not None:
            state = state.model_copy(update={"home": known.current})
        classes, per_100k = len(context.settings.classes), context.settings.drift.false_alarms_per_100k
        for item in fresh:
            if item.version == state.version and item.frame > state.after:
                alarms, home = state.alarms, state.home
                state = looked(state, item.frame, scores_of(item, known, classes), per_100k, context.now)
                if state.alarms > alarms:
                    state = state.model_copy(update={"size": size_of(known, home)})
                    log.warning("drift_alarm", reason=state.reason, foreign=state.foreign, size=state.size)
        upto = max(state.upto, fresh[-1].frame)
        seen |= {item.frame for item in fresh}
        there = (record.id for record in context.records())
        missed = tuple(frame for frame in there if state.after < frame < upto and frame not in seen)
        return state.model_copy(update={"upto": upto, "missed": missed})


def size_of(known: Conditions | None, home: int | None) -> float | None:
    """Return how far the condition of the stream is from condition `home` (thresholds); None when one is not known."""
    now, before = (known.condition(known.current), known.condition(home)) if known is not None else (None, None)
    if known is None or now is None or before is None or known.threshold <= 0.0:
        return None
    if now.number == before.number:
        return 0.0
    return float(distances(np.array(now.centroids), np.array(before.centroids)).min()) / known.threshold


def scores_of(item: Observation, known: Conditions | None, classes: int) -> tuple[float, float]:
    """Return the scores of a frame (0-1): entropy of the output, and distance of its style from what is known."""
    entropy = item.entropy / math.log(max(classes, 2))
    if known is None or item.released != known.released or not known.conditions or known.threshold <= 0.0:
        return entropy, 0.5
    centroids = np.array([row for condition in known.conditions for row in condition.centroids])
    apart = float(distances(np.array([item.style], np.float64), centroids).min())
    return entropy, min(apart / known.threshold / FAR, 1.0)
