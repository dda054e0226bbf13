"""What the size of a round means for its spec: BatchNorm statistics alone, a tiny recipe, or a full round."""

import time
from collections.abc import Sequence
from typing import Any

from configs.load import merge
from configs.settings import Settings
from daemon.rounds.history import device_uses
from storage.buffer.catalog_records import FrameRecord
from storage.rounds.device_time import counted
from storage.rounds.folder import RoundStore
from storage.rounds.records import Effort

STATISTICS_FRAMES = 32
"""Newest training frames that statistics alone are estimated on: a drift alarm is about the newest."""
STATISTICS_STEPS = 16
"""Batches of them."""
STATISTICS_RATIOS = (0.5,)
"""Average with the serving weights, which mixes old and new statistics; one, because it is to be quick."""


def round_settings(settings: Settings, effort: Effort, store: RoundStore, *, manual: bool) -> Settings:
    """Return the settings of one round: those in force, made smaller by its effort.

    Unless an operator asked for it (`manual`), its training ends with the budget of the day at the latest.
    """
    advanced = settings.schedule.advanced
    changes: dict[str, Any] = {}
    if advanced.minutes_per_day > 0.0 and not manual:
        used = sum(item.seconds for item in counted(device_uses(store), time.time()))
        changes["max_seconds"] = min(settings.round.max_seconds, max(1.0, 60.0 * advanced.minutes_per_day - used))
    if effort == "tiny":
        changes["steps"] = min(settings.round.steps, advanced.tiny_steps)
    if effort == "statistics":
        changes |= {"steps": STATISTICS_STEPS, "advanced": {"average_ratios": STATISTICS_RATIOS}}
    values = merge(settings.model_dump(), {"round": changes})
    return Settings.model_validate(
        {**values, "recipe": {"name": "bn_statistics"}} if effort == "statistics" else values
    )


def train_frames(effort: Effort, frames: Sequence[FrameRecord]) -> tuple[int, ...]:
    """Return the ids of the leased frames to train on."""
    mine = tuple(frame.id for frame in frames if not frame.holdout)
    return mine[-STATISTICS_FRAMES:] if effort == "statistics" else mine
