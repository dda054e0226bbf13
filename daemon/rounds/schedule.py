"""Decide when a round starts by itself. Pure: from facts to a trigger, or to what is missing."""

from dataclasses import dataclass
from typing import Literal

from configs.settings import Settings
from daemon.runtime.activity import ActivityPart
from daemon.runtime.backoff import Backoff

Trigger = Literal["new_frames", "interval", "manual"]

RETRIES = Backoff(base=30.0, cap=3600.0)
"""Delays after failed rounds; the same frames would fail the same way in a tight loop."""


@dataclass(frozen=True, slots=True)
class ScheduleState:
    """Facts for the decision, read from the catalog and the round folders, so they survive a restart."""

    frames: int
    """Frames in the buffer."""
    holdout: int
    """Held-out frames among them."""
    new_frames: int
    """Frames committed since the start of the last judged round."""
    last_ended: float | None
    """End of the last round, with any result (Unix, seconds)."""
    failures: int
    """Consecutive failed rounds, up to the last one."""
    serving: bool
    """Whether a version serves."""


class NextRound(ActivityPart):
    """What the next round waits for."""

    frames_missing: int
    """New frames still missing, as far as counts can tell."""
    not_before: float | None
    """After failures: when the next attempt may start (Unix, seconds)."""
    waiting_for: str
    """One sentence."""


def due(now: float, state: ScheduleState, settings: Settings) -> tuple[Trigger | None, NextRound]:
    """Return why a round starts at `now` (Unix, seconds), None when it does not; and what the next one waits for.

    It needs a serving version, `schedule.min_frames` frames and `gate.advanced.min_holdout` held-out ones, because
    otherwise the gate could not accept anything. Then enough new frames start it, or the interval with at least one new
    frame. After failures nothing starts before a growing delay has passed. A round that ended in the future ended under
    a clock that was set back since: it delays nothing.
    """
    schedule = settings.schedule  # held-out frames come by chance; how many are missing is not predicted
    missing = max(schedule.new_frames - state.new_frames, schedule.min_frames - state.frames, 0)
    ended = state.last_ended if state.last_ended is not None and state.last_ended <= now else None
    not_before = ended + RETRIES.delay(state.failures) if state.failures and ended is not None else None
    trigger = _trigger(now, ended, state, settings)
    waiting_for = _obstacle(now, not_before, state, settings)
    if not waiting_for and trigger is not None:
        return trigger, NextRound(frames_missing=0, not_before=not_before, waiting_for="nothing: a round starts now")
    if not waiting_for:
        interval = schedule.interval_seconds
        also = f", or {interval:g} s after the last round with a new frame" if interval > 0 else ""
        waiting_for = f"{missing} more new frames{also}"
    return None, NextRound(frames_missing=missing, not_before=not_before, waiting_for=waiting_for)


def _trigger(now: float, ended: float | None, state: ScheduleState, settings: Settings) -> Trigger | None:
    schedule = settings.schedule
    if state.new_frames >= schedule.new_frames:
        return "new_frames"
    if schedule.interval_seconds <= 0 or state.new_frames == 0:
        return None
    passed = ended is None or now - ended >= schedule.interval_seconds
    return "interval" if passed else None


def _obstacle(now: float, not_before: float | None, state: ScheduleState, settings: Settings) -> str:
    if not state.serving:
        return "a serving version: `mfmd pretrain` or `mfmd import PATH` creates one"
    if state.frames < settings.schedule.min_frames:
        return f"{settings.schedule.min_frames - state.frames} more frames (schedule.min_frames)"
    if state.holdout < settings.gate.advanced.min_holdout:
        return f"{settings.gate.advanced.min_holdout - state.holdout} more held-out frames (gate.advanced.min_holdout)"
    if not settings.schedule.enabled:
        return "nothing: schedule.enabled is off; `mfmd adapt` starts rounds"
    if not_before is not None and now < not_before:
        return f"the delay after {state.failures} failed round(s)"
    return ""
