"""Decide when a round starts by itself. Pure: from facts to a trigger, or to what is missing."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from configs.settings import Settings
from daemon.runtime.activity import ActivityPart
from daemon.runtime.backoff import Backoff
from storage.gate.probation import Probation
from storage.rounds.device_time import DAY, DeviceUse, counted
from storage.rounds.records import Effort

Trigger = Literal["new_frames", "interval", "drift", "manual"]

RETRIES = Backoff(base=30.0, cap=3600.0)
"""Delays after failed rounds; the same frames would fail the same way in a tight loop."""
SETTLE_SHARE = 0.5
"""A round waits for what is unsettled until this much more than `schedule.new_frames` came (share of them)."""
SETTLE_SECONDS = 30.0
"""It waits no longer than this after the newest frame, either (seconds)."""
QUIET_SECONDS = 60.0
"""Time without a new frame after which fewer than `schedule.new_frames` are all that come for now (seconds)."""


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
    last_committed: float | None = None
    """Commit of the newest frame (Unix, seconds)."""
    drifted: bool = False
    """Whether a drift alarm named frames that no judged round has seen; one of statistics alone does not count."""
    drift_size: float | None = None
    """Size of that change (`Drift.size`)."""
    statistics: Literal["possible", "tried", "no_batch_norm"] = "possible"
    """Whether statistics alone may still answer that alarm."""
    rejected: int | None = None
    """The last judged round if it was rejected, and since then version and condition are the same, without alarm."""
    rejections: int = 0
    """Rejected rounds in a row (`round.advanced.restart_after_rejections`)."""
    uses: tuple[DeviceUse, ...] = ()
    """Rounds of the last days and how long they used a device."""
    expected: Mapping[Effort, float] = field(default_factory=dict)
    """Time of the last judged round of each effort (seconds)."""
    probation: Probation | None = None
    """The probation of the version that was promoted last."""
    refused: str = ""
    """What the last round that was called for waits for, and why: too few of its frames may be used, or none."""
    unsettled: str = ""
    """What the gate still has to find out about the newest frames; a recall during a round would void its verdict."""
    paused: str = ""
    """Who paused the daemon's own changes, and why."""
    unseen_since: float | None = None
    """When the oldest frame that this waits for the observer to see was committed (Unix, seconds)."""


Held = Literal["none", "paused", "cooldown", "failures", "nothing_new", "budget", "unsettled", "refused"]
"""What holds a round that frames, time or drift call for: a pause (which is said in any case), the cool-down after a
rollback by probation, the delay after failed rounds, that it would not help, the budget of the day, what the gate still
has to find out, that too few frames may be used."""


Action = Literal["serve", "shadow", "ask"]
"""What an accepted candidate does: it serves; it runs in the shadow first (`gate.shadow_images`); it waits for a person
(`gate.policy: manual`)."""
_SIZES: dict[Effort, str] = {
    "statistics": ": BatchNorm statistics of the newest frames alone",
    "tiny": ", a tiny one: the drift alarm came within the same condition",
    "full": "",
}


class NextRound(ActivityPart):
    """What the next round waits for."""

    frames_missing: int
    """New frames still missing before a round starts at once, as far as counts can tell."""
    not_before: float | None
    """After failures: when the next attempt may start (Unix, seconds)."""
    waiting_for: str
    """One sentence."""
    held: Held = "none"
    """What holds it although it is called for."""
    effort: Effort = "full"
    """How large it will be, if it started now."""
    action: Action = "serve"
    """What its candidate does when the gate accepts it."""
    used_minutes: float = 0.0
    """Time that rounds used a device for in the last 24 hours (minutes)."""


def due(now: float, state: ScheduleState, settings: Settings) -> tuple[Trigger | None, NextRound]:
    """Return why a round starts at `now` (Unix, seconds), None when it does not; and what the next one waits for.

    It needs a serving version, `schedule.min_frames` frames, `gate.advanced.min_holdout` held-out ones, because
    otherwise the gate could not accept anything, and as many to train on as the recipe needs. Then enough new frames
    start it: `schedule.new_frames`, or, when none came for `QUIET_SECONDS`, as many as the buffer held before, at least
    `schedule.min_frames`; a small folder gets its rounds too. Or a drift alarm with `schedule.min_frames` new frames,
    or the interval with one new frame does. What may hold it then is `Held`. A round that ended in the future ended
    under a clock that was set back since: it delays nothing.
    """
    schedule = settings.schedule
    ended = state.last_ended if state.last_ended is not None and state.last_ended <= now else None
    not_before = ended + RETRIES.delay(state.failures) if state.failures and ended is not None else None
    trigger = _trigger(now, ended, state, settings)
    effort = effort_of(trigger, state, settings)
    few = _few_to_train(state, settings, effort)
    missing = max(schedule.new_frames - state.new_frames, schedule.min_frames - state.frames, few, 0)
    waiting_for = _obstacle(state, settings, few)
    held, why = ("none", "") if waiting_for else _hold(now, not_before, trigger, effort, state, settings)
    if state.paused:
        held, why = "paused", f"`mfmd resume`: {state.paused}"
    waiting_for = why or waiting_for
    starts = None if waiting_for else trigger
    if starts is not None:
        missing, waiting_for = 0, f"nothing: a round starts now{_SIZES[effort]}"
        if trigger == "drift" and state.statistics == "no_batch_norm":
            waiting_for += "; without BatchNorm there are no statistics to try first"
    return starts, NextRound(
        frames_missing=missing,
        not_before=not_before,
        waiting_for=waiting_for or _counts(state, settings),
        held=held,
        effort=effort,
        action=_action(settings),
        used_minutes=sum(item.seconds for item in counted(state.uses, now)) / 60.0,
    )


def _action(settings: Settings) -> Action:
    """Return what an accepted candidate does under these settings."""
    if settings.gate.policy == "manual":
        return "ask"
    return "shadow" if settings.gate.shadow_images else "serve"


def effort_of(trigger: Trigger | None, state: ScheduleState, settings: Settings) -> Effort:
    """Return how large a round is: after a drift alarm statistics alone first, then by the size of the change."""
    advanced = settings.schedule.advanced
    if trigger != "drift":
        return "full"
    if advanced.statistics_first and state.statistics == "possible" and settings.recipe.name != "bn_statistics":
        return "statistics"
    many = state.new_frames >= settings.schedule.new_frames
    return "tiny" if state.drift_size == 0.0 and advanced.tiny_steps and not many else "full"


def _counts(state: ScheduleState, settings: Settings) -> str:
    """Return what a round that nothing holds waits for."""
    interval, wanted = settings.schedule.interval_seconds, _wanted(state, settings)
    also = f", or {interval:g} s after the last round with a new frame" if interval > 0 else ""
    counts = [f"{wanted - state.new_frames} more new frames"] if state.new_frames < wanted else []
    quiet = [f"{QUIET_SECONDS:g} s without a new frame"] if wanted < settings.schedule.new_frames else []
    return f"{', then '.join(counts + quiet)}{also}"


def _wanted(state: ScheduleState, settings: Settings) -> int:
    """Return how many new frames start a round, be it only after a quiet time."""
    before = state.frames - state.new_frames
    return min(settings.schedule.new_frames, max(settings.schedule.min_frames, before))


def _trigger(now: float, ended: float | None, state: ScheduleState, settings: Settings) -> Trigger | None:
    schedule = settings.schedule
    came = None if state.last_committed is None else now - state.last_committed
    quiet = came is None or not 0.0 <= came < QUIET_SECONDS  # a commit in the future: the clock was set back
    if state.drifted and settings.drift.advanced.starts_round and state.new_frames >= schedule.min_frames:
        return "drift"
    if state.new_frames >= (_wanted(state, settings) if quiet else schedule.new_frames):
        return "new_frames"
    if schedule.interval_seconds <= 0 or state.new_frames == 0:
        return None
    passed = ended is None or now - ended >= schedule.interval_seconds
    return "interval" if passed else None


def _few_to_train(state: ScheduleState, settings: Settings, effort: Effort) -> int:
    """Return how many frames the recipe lacks to train on; statistics alone need no more than any round."""
    needed = settings.recipe.least_frames()
    return max(0, needed - (state.frames - state.holdout)) if needed > 1 and effort != "statistics" else 0


def _obstacle(state: ScheduleState, settings: Settings, few: int) -> str:
    """Return what makes every round impossible, or the setting that starts none; empty when nothing does.

    `few`: frames that the recipe lacks to train on.
    """
    if not state.serving:
        return "a serving version: `mfmd pretrain` or `mfmd import PATH` creates one"
    schedule, capacity = settings.schedule, settings.buffer.capacity_frames
    if capacity < schedule.min_frames:
        return f"a larger buffer: set buffer.capacity_frames ({capacity}) to schedule.min_frames or more"
    if state.frames < schedule.min_frames:
        return f"{schedule.min_frames - state.frames} more frames (schedule.min_frames)"
    if held := max(0, settings.gate.advanced.min_holdout - state.holdout):
        more = f"{held} more held-out frames (gate.advanced.min_holdout)"
        if settings.buffer.holdout_fraction == 0.0:
            return f"{more}, but buffer.holdout_fraction is 0: set it above 0, then drop new images"
        return f"{more}: the next {held} new images are held out; drop more images, or set it lower"
    if few:
        more = f"{few} more frames to train on (recipe.advanced.target_images)"
        if (least := state.holdout + settings.recipe.least_frames()) > capacity:
            more += f", but {state.holdout} are held out: set buffer.capacity_frames ({capacity}) to {least} or more"
        return more
    if not settings.schedule.enabled:
        return "nothing: schedule.enabled is off; `mfmd adapt` starts rounds"
    return ""


def _hold(
    now: float,
    not_before: float | None,
    trigger: Trigger | None,
    effort: Effort,
    state: ScheduleState,
    settings: Settings,
) -> tuple[Held, str]:
    """Return what holds a round, and in one sentence; what is not about time holds only one that is called for."""
    seconds = settings.probation.advanced.cooldown_seconds
    if state.probation is not None and (left := state.probation.cooldown_left(seconds)) > 0.0:
        bad = state.probation.version
        return "cooldown", f"the cool-down of {seconds:g} s after version {bad} was rolled back: {left:.0f} s left"
    if not_before is not None and now < not_before:
        return "failures", f"the delay after {state.failures} failed round(s)"
    if trigger is None:
        return "none", ""
    if trigger != "drift" and (why := _nothing_new(state, settings)):
        return "nothing_new", why
    if why := _over_budget(now, state.expected.get(effort, 0.0), state, settings):
        return "budget", why
    if settles(now, state, settings):
        return "unsettled", state.unsettled
    if state.refused:
        return "refused", state.refused
    return "none", ""


def _nothing_new(state: ScheduleState, settings: Settings) -> str:
    """Return why a round would not help; empty when it may."""
    wanted = math.ceil(settings.schedule.advanced.new_share * state.frames)
    restarts = 0 < settings.round.advanced.restart_after_rejections <= state.rejections  # unlike the rejected ones
    if state.rejected is None or restarts or state.new_frames >= wanted:
        return ""
    return (
        f"something new: round {state.rejected} was rejected, and since then there is no other condition, no drift "
        f"alarm, and only {state.new_frames} of {state.frames} frames are new; {wanted - state.new_frames} more start "
        "a round (schedule.advanced.new_share)"
    )


def _over_budget(now: float, expected: float, state: ScheduleState, settings: Settings) -> str:
    """Return what a round of `expected` seconds waits for that would exceed the budget of the day; empty when it fits.

    An `expected` of 0 is unknown: then only a budget that is used up holds it.
    """
    minutes, uses = settings.schedule.advanced.minutes_per_day, counted(state.uses, now)
    used = sum(item.seconds for item in uses)
    if minutes <= 0.0 or (used < 60.0 * minutes and used + expected <= 60.0 * minutes):
        return ""
    told = f"the budget of {minutes:g} minutes a day: {used / 60:.1f} are used"
    about = f", a round takes about {expected / 60:.1f}" if expected else ""
    if expected > 60.0 * minutes:
        return f"{told}, and a round takes about {expected / 60:.1f}: raise schedule.advanced.minutes_per_day"
    for item in uses:  # the oldest are free again first
        used -= item.seconds
        if used < 60.0 * minutes and used + expected <= 60.0 * minutes:
            free = max(0.0, item.ended + DAY - now) / 3600.0
            return f"{told}{about}; the next may start in {free:.1f} h"
    return told


def settles(now: float, state: ScheduleState, settings: Settings) -> bool:
    """Return whether a round waits for what is unsettled: never so long that a slow observer stops rounds."""
    came = math.inf if state.last_committed is None else now - state.last_committed
    few = state.new_frames < (1.0 + SETTLE_SHARE) * settings.schedule.new_frames
    at_once = state.unseen_since is not None and 0.0 <= now - state.unseen_since < SETTLE_SECONDS  # many were dropped
    return bool(state.unsettled) and (few or at_once) and 0.0 <= came < SETTLE_SECONDS
