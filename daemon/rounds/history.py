"""Summaries of rounds from their folders, and the facts that the schedule needs."""

from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Literal

from pydantic import Field

from daemon.errors import FitMismatch
from daemon.rounds.schedule import ScheduleState
from daemon.runtime.activity import ActivityPart
from storage.buffer.catalog import Catalog
from storage.buffer.catalog_records import CatalogCounts
from storage.durable.record import read_record
from storage.errors import StorageError
from storage.gate.conditions import ConditionStore
from storage.gate.drift import Drift
from storage.gate.pause import read_pause
from storage.gate.probation import Probation
from storage.gate.recall import Recall
from storage.layout import StateLayout
from storage.registry.registry import CheckpointRegistry
from storage.rounds.device_time import DeviceUse, joined, read_uses
from storage.rounds.folder import RoundFolder, RoundStore
from storage.rounds.records import Effort, RoundScores
from storage.rounds.refusal import Refusal
from storage.rounds.verdict import ENDED, RoundRecord, Stage, Verdict

UNSEEN = 4
"""New frames that the observer may be behind when a round starts."""
RESTART_TRIES = 3
"""Rounds in a row that may fail although each started from the released weights; then the next one does not."""
LOOK_BACK = 20
"""Number of rounds read to find consecutive failures and the last judged one."""

Result = Literal["running", "suspended", "promoted", "rejected", "inconclusive", "suggested", "failed", "stopped"]
JUDGED: tuple[Result, ...] = ("promoted", "rejected", "inconclusive", "suggested")
"""Results of rounds whose candidate the gate judged."""
WAITING = {"scoring": "the candidate is scored", "judged": "the verdict is applied"}
"""Activities of a running round other than training."""


class RoundSummary(ActivityPart):
    """One round in one line."""

    round: int
    """Number."""
    result: Result
    """running; suspended: no daemon runs it now; promoted, rejected or inconclusive by the gate; failed: it crashed,
    hung or diverged; stopped: by an operator; suggested: its version waits for a decision.
    """
    stage: Stage | None = None
    """Where it stands (docs/explanation/rounds.md); None for a damaged folder."""
    reason: str
    """Why."""
    trigger: str | None = None
    """Why it started."""
    created: float | None = None
    """Start (Unix, seconds)."""
    ended: float | None = None
    """When it ended: the time of its verdict (Unix, seconds); None before."""
    incumbent: int | None = None
    """Version that served when it started; its candidate is compared with it."""
    effort: Effort = "full"
    """How large it was."""
    condition: int | None = None
    """Condition of its newest frames; None when it was not known."""
    newest_frame: int = 0
    """Newest frame of its snapshot (id)."""
    restarts: bool = False
    """Whether it trained from the released weights, because rounds before it were rejected."""
    version: int | None = None
    """Version that its candidate became."""
    frames: int = 0
    """Frames of its snapshot, held-out ones included."""
    left_out: dict[str, int] = Field(default_factory=dict)
    """Frames that it must not use, by reason."""
    steps: int = 0
    """Optimizer steps done."""
    seconds: float | None = None
    """Wall time of the round itself (seconds)."""
    decision: str | None = None
    """The gate's decision: accepted, rejected or inconclusive; a failed round is rejected."""


def summarise(folder: RoundFolder, *, alive: bool = False) -> RoundSummary:
    """Return the summary of a round. Before its end it runs if its process is `alive`, otherwise it is suspended.

    A damaged folder counts as failed, with the damage as reason.
    """
    try:
        record = folder.record()
        if record.stage in ENDED:
            return _ended_summary(folder.path, record.since)
        return _summarise(folder, record, alive=alive)
    except StorageError as error:
        return RoundSummary(round=folder.number, result="failed", reason=str(error))


@lru_cache(maxsize=256)
def _ended_summary(path: Path, since: float) -> RoundSummary:
    """Read the summary of an ended round once, because it does not change and scores are megabytes."""
    folder = RoundFolder(path)
    return _summarise(folder, folder.record(), alive=False)


def _summarise(folder: RoundFolder, record: RoundRecord, *, alive: bool) -> RoundSummary:
    spec, scores, verdict = folder.spec(), folder.scores(), folder.verdict()
    result = _result(record, scores, verdict, alive=alive)
    progress = None if scores else folder.last_progress()
    return RoundSummary(
        round=folder.number,
        result=result,
        stage=record.stage,
        reason=_reason(folder, record, scores, result),
        trigger=spec.trigger,
        created=spec.created,
        ended=(verdict.at if verdict else record.since) if record.stage in (*ENDED, "suggested") else None,
        incumbent=spec.incumbent,
        effort=spec.effort,
        condition=spec.conditions.newest if spec.conditions else None,
        newest_frame=max([0, *spec.train_frames, *spec.holdout_frames, *chain(*spec.left_out.values())]),
        restarts=spec.restarts,
        version=verdict.version if verdict else None,
        frames=len(spec.train_frames) + len(spec.holdout_frames),
        left_out={reason: len(frames) for reason, frames in spec.left_out.items()},
        steps=scores.steps if scores else progress.step if progress else 0,
        seconds=scores.seconds if scores else None,
        decision=verdict.decision if verdict else None,
    )


def summaries(store: RoundStore, limit: int, *, alive: bool) -> list[RoundSummary]:
    """Return the newest `limit` rounds, newest first; `alive`: a process holds the directory, the newest may run."""
    numbers = store.numbers()
    newest = numbers[-1:]
    shown = reversed(numbers[-limit:] if limit > 0 else [])
    return [summarise(store.folder(number), alive=alive and number in newest) for number in shown]


def schedule_state(catalog: Catalog | None, store: RoundStore, registry: CheckpointRegistry) -> ScheduleState:
    """Return the input of `schedule.due`, from storage alone. Stopped rounds are neither failures nor successes.

    Raises StorageError while the serving version is unknown.
    """
    recent = [summarise(store.folder(number)) for number in reversed(store.numbers()[-LOOK_BACK:])]
    last = next((item for item in recent if item.result in JUDGED and item.effort != "statistics"), None)
    since = recent[: recent.index(last)] if last is not None else recent
    newest = last.newest_frame if last is not None else 0
    layout, serving = StateLayout(store.root.parent), registry.serving()
    drift, (rejected, row) = _drift(layout, newest), _rejected(layout, registry, recent, last)
    counts = catalog.counts() if catalog is not None else None
    unsettled, unseen_since = _unsettled(layout, catalog, newest)
    return ScheduleState(
        frames=counts.frames if counts else 0,
        holdout=counts.holdout if counts else 0,
        new_frames=_new_frames(catalog, counts, newest) if catalog and counts else 0,
        last_committed=counts.last_committed_at if counts else None,
        last_ended=next((item.ended for item in recent if item.ended), None),
        failures=sum(item.result == "failed" for item in since),
        serving=serving is not None,
        drifted=drift is not None,
        drift_size=drift.size if drift is not None else None,
        statistics=_statistics(registry, drift, since, serving.version) if drift and serving else "possible",
        rejected=rejected,
        rejections=row,
        uses=device_uses(store),
        expected={item.effort: item.seconds for item in reversed(recent) if item.result in JUDGED and item.seconds},
        probation=_probation(layout),
        refused=_refused(layout),
        unsettled=unsettled,
        paused=str(read_pause(layout) or ""),
        unseen_since=unseen_since,
    )


def device_uses(store: RoundStore) -> tuple[DeviceUse, ...]:
    """Return how long rounds used a device: the remembered ones, and the newest, which a kill may have left out."""
    found = []
    for number in store.numbers()[-LOOK_BACK:]:
        summary = summarise(store.folder(number))
        if summary.ended is not None and summary.seconds is not None:
            found.append(DeviceUse(round=number, ended=summary.ended, seconds=summary.seconds))
    with suppress(StorageError):  # `mfmd check` reports the damage
        return joined(read_uses(StateLayout(store.root.parent).device_time), tuple(found))
    return tuple(found)


def _unsettled(layout: StateLayout, catalog: Catalog | None, newest: int) -> tuple[str, float | None]:
    """Return what the gate still has to find out about frames after `newest`; damaged records count as settled.

    And when the oldest frame that the observer has to see was committed (Unix, seconds).
    """
    if catalog is None or not layout.observations.exists():
        return "", None
    from storage.buffer.observations import Observations  # numpy: only where there is something to read

    try:
        recall, known = read_record(layout.recall, Recall), ConditionStore(layout.conditions).read()
        with Observations.open(layout.observations, writable=False) as observations:
            seen = observations.observed()
    except StorageError:
        return "", None
    if recall is not None and recall.stage == "asked":
        return "a recall to be decided", None
    if known is not None and known.current is None:
        return "frames that say which condition the stream is of", None
    waiting = catalog.commits_after(newest, but=seen) if seen else []  # it begins with the newest ones
    if len(waiting) <= UNSEEN:
        return "", None
    return f"the observer, which has {len(waiting)} new frames to see", waiting[UNSEEN]


def _probation(layout: StateLayout) -> Probation | None:
    """Return the probation; None for a damaged record, which the gate reports."""
    with suppress(StorageError):
        return read_record(layout.probation, Probation)
    return None


def _refused(layout: StateLayout) -> str:
    """Return what a round waits for that could not begin; nothing for a damaged record, which `mfmd check` reports."""
    with suppress(StorageError):
        if (refusal := read_record(layout.refusal, Refusal)) is not None:
            what = "other settings" if refusal.code == FitMismatch.code else "other frames"
            return f"{what}: {refusal.reason}"
    return ""


def rejected_in_a_row(rounds: Iterable[RoundSummary], incumbent: int, condition: int | None) -> int:
    """Return how many of the newest rounds from `incumbent` were rejected since it serves, or since one restarted.

    `rounds`: newest first. Only those of `condition` count, when it is known. Rounds that failed, were stopped or
    stayed inconclusive, and those of statistics alone, say nothing about the student: they neither count nor end it. A
    restarted round that failed, for example because of a kill, is made up for, `RESTART_TRIES` times in all.
    """
    count = tries = 0
    for item in rounds:
        if item.incumbent is None or item.effort == "statistics":
            continue
        if condition is not None and item.condition not in (None, condition):
            continue
        restarted = item.restarts and item.stage in ENDED
        tries += restarted
        if item.incumbent != incumbent or item.result == "promoted" or tries >= RESTART_TRIES:
            break
        if restarted and item.result != "failed":
            break
        count += item.result == "rejected"
    return count


def _rejected(
    layout: StateLayout, registry: CheckpointRegistry, recent: Sequence[RoundSummary], last: RoundSummary | None
) -> tuple[int | None, int]:
    """Return the last judged round if it was rejected and version and condition are those of now; and the whole row.

    The row is 0 while the released version serves, which rounds start from anyway. What cannot be read is unlike it.
    """
    if last is None or last.result != "rejected" or last.condition is None:
        return None, 0
    with suppress(StorageError):
        known, serving = ConditionStore(layout.conditions).read(), registry.serving_version()
        if known is not None and (known.current, serving) == (last.condition, last.incumbent):
            adapted = registry.released(serving) != serving
            return last.round, rejected_in_a_row(recent, serving, last.condition) if adapted else 0
    return None, 0


def _statistics(
    registry: CheckpointRegistry, drift: Drift, since: Sequence[RoundSummary], version: int
) -> Literal["possible", "tried", "no_batch_norm"]:
    """Return whether statistics alone may still answer an alarm; `since`: the rounds after the last judged one."""
    if any(item.effort == "statistics" and item.newest_frame >= max(drift.foreign) for item in since):
        return "tried"
    return "possible" if _has_batch_norm(registry, version) else "no_batch_norm"


def _has_batch_norm(registry: CheckpointRegistry, version: int) -> bool:
    """Return whether a version has BatchNorm statistics; not when it cannot be read."""
    try:
        return _has_statistics(registry.weights_path(version))
    except StorageError:
        return False


@lru_cache(maxsize=8)
def _has_statistics(weights: Path) -> bool:
    from storage.registry.weight_changes import tensor_headers  # numpy: only where there was an alarm

    return any(name.endswith("running_mean") for name in tensor_headers(weights))


def _drift(layout: StateLayout, newest: int) -> Drift | None:
    """Return the drift alarm if it named a frame after `newest`. A damaged record counts as no alarm."""
    with suppress(StorageError):
        drift = read_record(layout.drift, Drift)
        return drift if drift is not None and max(drift.foreign, default=0) > newest else None
    return None


def _new_frames(catalog: Catalog, counts: CatalogCounts, newest: int) -> int:
    """Count frames of the buffer committed after `newest`; all of them if they are the whole buffer.

    Ids ascend without gaps in commit order. They also count frames that a reservoir did not keep; those start no round.
    """
    there = catalog.frames_after(newest)
    return max(0, counts.committed_total - newest) if there == counts.frames else there


def _result(record: RoundRecord, scores: RoundScores | None, verdict: Verdict | None, *, alive: bool) -> Result:
    if record.stage == "suggested":
        return "suggested"
    if record.stage not in ENDED:
        return "running" if alive else "suspended"
    if record.stage == "rejected" and scores is not None and scores.status == "stopped":
        return "stopped"
    if record.stage == "rejected" and verdict is not None:
        return "inconclusive" if verdict.decision == "inconclusive" else "rejected"
    return "promoted" if record.stage == "promoted" else "failed"


def _reason(folder: RoundFolder, record: RoundRecord, scores: RoundScores | None, result: Result) -> str:
    if result == "running":
        return _in_shadow(folder) if record.stage == "shadowing" else WAITING.get(record.stage, "no result yet")
    if result == "suspended":
        return "it was interrupted; the next start of the daemon resumes or ends it"
    return scores.reason if scores is not None and result in ("failed", "stopped") else record.reason


def _in_shadow(folder: RoundFolder) -> str:
    progress = folder.last_progress()
    if progress is None or progress.phase != "shadow":
        return "in the shadow"
    agreed = f", {progress.agreement:.1%} of their pixels as served" if progress.agreement is not None else ""
    return f"in the shadow: {progress.step} of {progress.steps} live images compared{agreed}"
