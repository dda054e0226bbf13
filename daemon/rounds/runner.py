"""One round from outside: lease frames, write the spec, launch, follow, conclude. For the daemon and `mfmd adapt`.

The round is a process group of its own. When it crashes or hangs, it is recorded as failed, its frames are released,
and the incumbent keeps serving. When the daemon ends first, the next one resumes the round (`daemon.rounds.recovery`).
"""

import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal, NoReturn

from adapters.tracing import spans
from configs.round import RoundSettings
from configs.settings import Settings
from daemon.errors import DaemonError, NotEnoughFrames
from daemon.gate.frame_choice import choose_frames, left_out_text
from daemon.gate.promotion import advance_round
from daemon.gate.round_conditions import conditions_of_round
from daemon.gate.shadow import note_wait, progress_of
from daemon.rounds.canary import without_canary
from daemon.rounds.effort import round_settings, train_frames
from daemon.rounds.environment import round_environment
from daemon.rounds.fits import check_fit, without_others
from daemon.rounds.history import device_uses
from daemon.rounds.inheritance import inherited_round, promoted_round, restarts
from daemon.rounds.launch import launch_command
from daemon.rounds.schedule import Trigger
from daemon.runtime.logs import get_logger
from daemon.runtime.process_group import ProcessGroup, last_line
from storage import durable
from storage.buffer.catalog_records import FrameRecord
from storage.buffer.frames import FrameBuffer
from storage.errors import StorageError
from storage.layout import StateLayout
from storage.registry.provenance import snapshot_of
from storage.registry.registry import CheckpointRegistry
from storage.registry.shadow_record import ShadowRecords
from storage.rounds.device_time import write_uses
from storage.rounds.folder import RoundFolder, RoundStore
from storage.rounds.records import Effort, Progress, RoundScores, RoundSpec
from storage.rounds.refusal import Refusal
from storage.rounds.verdict import AT_WORK, RoundStart, Stage, Verdict

POLL_SECONDS = 0.2
POLL_SHADOW_SECONDS = 0.5
"""Interval at which a candidate in the shadow is polled (seconds)."""
NOTE_SECONDS = 10.0
"""Interval at which the waiting time is written (seconds): a kill loses no more."""
GRACE_SECONDS = 8.0
"""Between SIGTERM and SIGKILL (seconds): enough to end the current step and write scores."""
SCORING_SECONDS = 1800.0
"""Time a round may take beyond its training budget, for loading, saving and scoring (seconds)."""
START_SECONDS = 600.0
"""Time until all processes of a round run (seconds): torch from a cold disk takes a minute. Then budgets count."""
NICE = 5
"""Added to the daemon's nice value, because a round is less urgent than ingest and answers."""
STOPPED = "stopped before it could write its scores"

ShowProgress = Callable[[Progress], None]
log = get_logger(__name__)


class RoundSuspended(DaemonError):
    """The daemon stops. The round has saved its state, keeps its frames, and is resumed by the next daemon."""

    code = "round_suspended"


class RoundFailed(DaemonError):
    """A round crashed, hung or diverged. It is recorded, and the incumbent keeps serving."""

    code = "round_failed"

    def __init__(self, verdict: Verdict, reason: str, message: str) -> None:
        super().__init__(message)
        self.verdict = verdict
        self.reason = reason


@dataclass(frozen=True, slots=True)
class RoundContext:
    """Context of every round of a process."""

    settings: Settings
    buffer: FrameBuffer
    registry: CheckpointRegistry
    stop: threading.Event
    """Ends the round early."""
    on_progress: ShowProgress = lambda _: None
    """Called with each new line of progress."""
    suspends: bool = False
    """Whether a stopped round is left for the next daemon to resume; otherwise it has ended, inconclusive."""

    @property
    def store(self) -> RoundStore:
        """The round folders."""
        return RoundStore(StateLayout(self.settings.state).rounds)


def launch_round(context: RoundContext, trigger: Trigger, effort: Effort = "full") -> Verdict:
    """Run one round now and carry out its verdict. Only one at a time, under the state directory's lock.

    Raises NoCheckpoint, NotEnoughFrames or FitMismatch when it cannot start, RoundFailed after a failure was recorded,
    RoundSuspended when it was stopped and will resume, also while its candidate runs in the shadow.
    """
    buffer, registry, store = context.buffer, context.registry, context.store
    settings = round_settings(context.settings, effort, store, manual=trigger == "manual")
    incumbent, number = registry.serving_version(), store.next_number()
    leased = buffer.lease(number)
    with _leased(buffer, number):
        allowed = without_canary(leased, settings)
        with _refusal(StateLayout(settings.state)):
            released, manual = registry.released(incumbent), trigger == "manual"
            check_fit(settings.buffer, registry.manifest(incumbent))
            alike, others = without_others(allowed, settings.buffer)
            frames, out = choose_frames(alike, buffer, settings, released, manual=manual)
            out = others | out
            check_frames(frames, settings, out, canary=len(leased) - len(allowed))
        sized = replace(context, settings=settings)
        spec = _spec(sized, number, incumbent, frames, trigger, effort).model_copy(update={"left_out": out})
        folder = store.create(spec)
        told = {"trigger": trigger, "effort": effort, "incumbent": incumbent, "frames": len(frames)}
        log.info("round_started", round=number, left_out=left_out_text(out), **told)
        _train(context, settings.round, folder)
    return _conclude(context, folder)


def continue_round(context: RoundContext, number: int) -> Verdict:
    """Resume an interrupted round (`recovery.recover`): from its last training state, or in the shadow.

    Raises like `launch_round`.
    """
    folder = context.store.folder(number)
    if folder.record().stage in AT_WORK:
        with _leased(context.buffer, number):
            settings = Settings.model_validate(folder.spec().settings)  # its own: the state belongs to them
            folder.remove_scores()
            log.info("round_resumed", round=number, step=folder.saved_step)
            _train(context, settings.round, folder)
    return _conclude(context, folder)


@contextmanager
def _leased(buffer: FrameBuffer, number: int) -> Iterator[None]:
    """Release the round's frames at the end, unless it is only suspended."""
    try:
        yield
    except RoundSuspended:
        raise
    except BaseException:
        buffer.release(number)
        raise
    buffer.release(number)


@contextmanager
def _refusal(layout: StateLayout) -> Iterator[None]:
    """Write why a round cannot begin, for `mfmd status` and who asked for it; a round that begins removes that."""
    try:
        yield
    except NotEnoughFrames as error:
        durable.write_record(layout.refusal, Refusal(at=time.time(), code=error.code, reason=str(error)))
        raise
    durable.remove_file(layout.refusal)


def _conclude(context: RoundContext, folder: RoundFolder) -> Verdict:
    settings, registry, store, number = context.settings, context.registry, context.store, folder.number
    stage = _await_end(context, folder)
    heir = promoted_round(registry)
    store.remove_states(spare=heir)
    verdict, scores = folder.verdict(), folder.scores()
    write_uses(StateLayout(settings.state).device_time, device_uses(store))  # before folders go
    store.prune(settings.round.advanced.keep_folders, spare=heir)
    assert verdict is not None and scores is not None  # a round ends with both
    log.info("round_ended", round=number, stage=stage, reason=verdict.reason, version=verdict.version)
    if stage == "failed":
        raise RoundFailed(verdict, scores.reason, f"round {number} failed: {scores.reason}; see {folder.log}")
    return verdict


def _await_end(context: RoundContext, folder: RoundFolder) -> Stage:
    """Return the end of a round; wait for it while the candidate runs in the shadow.

    The next poll sees a rollback that happens meanwhile.
    """
    stopped, noted = False, time.monotonic()
    while True:
        shadowed = folder.record().stage == "shadowing"
        waited, gives_up = time.monotonic() - noted, stopped and not context.suspends
        stage = advance_round(context.registry, folder, context.settings, waited=waited, stopped=gives_up)
        ended = stage != "shadowing"
        if shadowed or not ended:  # after the decision, so that the images that made it are shown too
            _show_shadow(context, folder)
        if ended:
            return stage
        if stopped or waited > NOTE_SECONDS:
            note_wait(folder, waited)
            noted += waited
        if stopped:
            log.info("round_suspended", round=folder.number, shadow=True)
            continues = "continues in the shadow after the daemon's next start"
            raise RoundSuspended(f"the candidate of round {folder.number} {continues}")
        stopped = context.stop.wait(POLL_SHADOW_SECONDS)


def _show_shadow(context: RoundContext, folder: RoundFolder) -> None:
    """Write a line of progress when images were compared since the last one."""
    now = progress_of(folder, ShadowRecords(StateLayout(context.settings.state).shadow))
    last = folder.last_progress()
    if last is None or (last.phase, last.step) != (now.phase, now.step):
        folder.append_progress(now)
    context.on_progress(now)


def check_frames(
    frames: Sequence[FrameRecord],
    settings: Settings,
    left_out: Mapping[str, Sequence[int]] | None = None,
    *,
    canary: int = 0,
) -> None:
    """Raise NotEnoughFrames for too few frames for a round.

    `left_out`: those that it must not use, by reason; `canary`: how many others are canary images.
    """
    least, why, what = settings.schedule.min_frames, "", "in the buffer"
    if left_out:
        by_rules = {reason: ids for reason, ids in left_out.items() if reason != "fit"}
        others = {reason: ids for reason, ids in left_out.items() if reason == "fit"}
        why, what = f"; left out: {left_out_text(others)}" if others else "", "may be used"
        why += f"; round.advanced.leave_out leaves out: {left_out_text(by_rules)}" if by_rules else ""
    if canary:
        why = f"; {canary} more are canary images{why}"
    if len(frames) < least:
        raise NotEnoughFrames(f"{len(frames)} frames {what}, schedule.min_frames is {least}{why}; drop more images")
    trained, needed = sum(not frame.holdout for frame in frames), settings.recipe.least_frames()
    if 0 < trained < needed:
        held, capacity = len(frames) - trained, settings.buffer.capacity_frames
        room = f"set buffer.capacity_frames ({capacity}) to {held + needed} or more, and " * (held + needed > capacity)
        raise NotEnoughFrames(
            f"{trained} frames to train on, beside {held} held-out ones, and recipe.name {settings.recipe.name} needs "
            f"{needed} (recipe.advanced.target_images){why}; {room}drop more images"
        )
    if trained == 0:
        raise NotEnoughFrames(f"every frame is held out (buffer.holdout_fraction){why}; drop more images")


def record_failure(folder: RoundFolder, status: Literal["stopped", "failed"], reason: str) -> None:
    """Write the scores that a round did not write itself."""
    progress, created = folder.last_progress(), folder.spec().created
    steps, last = (progress.step, progress.at) if progress else (0, created)
    folder.write_scores(RoundScores(status=status, reason=reason, steps=steps, seconds=max(0.0, last - created)))


def _spec(
    context: RoundContext,
    number: int,
    incumbent: int,
    frames: Sequence[FrameRecord],
    trigger: Trigger,
    effort: Effort,
) -> RoundSpec:
    settings, registry = context.settings, context.registry
    released = registry.released(incumbent)
    conditions = conditions_of_round(settings, released, frames)
    again = effort == "full" and restarts(
        settings, context.store, incumbent, released, conditions.newest if conditions else None
    )
    inherits, why = inherited_round(settings, registry, context.store)
    if again:
        inherits, why = None, "rejected rounds in a row (round.advanced.restart_after_rejections)"
    log.info("round_start_state", round=number, inherits=inherits, restarts=again, reason=why)
    return RoundSpec(
        round=number,
        incumbent=incumbent,
        released=released,
        train_frames=train_frames(effort, frames),
        holdout_frames=tuple(frame.id for frame in frames if frame.holdout),
        settings=settings.model_dump(mode="json"),
        created=time.time(),
        trigger=trigger,
        effort=effort,
        inherits=inherits,
        restarts=again,
        snapshot=snapshot_of(frames),
        conditions=conditions,
    )


End = Literal["by itself", "stopped", "too long", "did not begin", "stalled"]
"""Why a round's process is no longer followed."""


def _train(context: RoundContext, settings: RoundSettings, folder: RoundFolder) -> None:
    """Launch the round's process, follow it, end it. Afterwards none of it runs, and `scores.json` exists.

    Raises RoundSuspended when the daemon stopped it and it will resume.
    """
    start = RoundStart(at=time.time(), step=folder.saved_step)
    folder.enter("training", starts=(*folder.record().starts, start))
    command, layout = launch_command(settings, folder.spec_path), StateLayout(context.settings.state)
    before = folder.last_progress()
    environment = round_environment(settings) | spans.carrier()
    group = ProcessGroup(layout, command, log=folder.log, nice=NICE, environment=environment)
    try:
        end = _follow(group, folder, context, settings, before)
        stopped = end in ("by itself", "stopped") and context.stop.is_set()
        if stopped and not context.suspends:
            # Before its process is told: should this process die now, the round has ended.
            _write_if_possible(folder, stopped=True)
        status = group.stop(GRACE_SECONDS)
    finally:
        group.kill()
    scores, late = folder.scores(), _late(end, settings)
    if stopped and context.suspends and folder.saved_step and (scores is None or scores.status == "stopped"):
        _suspend(folder, orderly=end == "stopped" or scores is not None)
    if scores is None and stopped:
        record_failure(folder, "stopped", STOPPED)
    elif scores is None or (late and scores.status == "stopped"):
        record_failure(folder, "failed", late or _death(status, folder))


def _suspend(folder: RoundFolder, *, orderly: bool) -> NoReturn:
    """Leave a round to the next daemon. Not `orderly`: its process died by itself, which counts as a crash."""
    if orderly:
        *before, last = folder.record().starts
        _write_if_possible(folder, stage="suspended", starts=(*before, last.model_copy(update={"orderly": True})))
    log.info("round_suspended", round=folder.number, step=folder.saved_step)
    raise RoundSuspended(f"round {folder.number} resumes from step {folder.saved_step} after the daemon's next start")


def _write_if_possible(folder: RoundFolder, **changes: Any) -> None:
    """Change the round's record. On a full disk the round still stops, and its stop counts as a crash."""
    try:
        folder.enter(**changes) if "stage" in changes else folder.change(**changes)
    except (OSError, StorageError) as error:
        log.warning("round_record_not_written", round=folder.number, error=str(error))


def _follow(
    group: ProcessGroup, folder: RoundFolder, context: RoundContext, settings: RoundSettings, last: Progress | None
) -> End:
    """Show the progress until the process ends, `stop` is set, the time is up or nothing moves.

    `last` is the progress of an earlier start. Time counts from the first line after it. How long nothing moved is
    counted in polls, so that a machine that was suspended ends no round.
    """
    deadline, began, scoring, quiet = time.monotonic() + START_SECONDS, False, False, 0.0
    while group.poll() is None:
        if context.stop.wait(POLL_SECONDS):
            return "stopped"
        progress, quiet = folder.last_progress(), quiet + POLL_SECONDS
        if progress is not None and progress != last:
            if not began:
                began, deadline = True, time.monotonic() + settings.max_seconds + SCORING_SECONDS
            last, quiet = progress, 0.0
            context.on_progress(progress)
            if progress.phase == "scoring" and not scoring:
                scoring = True
                _write_if_possible(folder, stage="scoring")
        if began and quiet > settings.advanced.stall_seconds:
            return "stalled"
        if time.monotonic() > deadline:
            return "too long" if began else "did not begin"
    return "by itself"


def _late(end: End, settings: RoundSettings) -> str:
    """Return why a round was ended that did not end in time; empty for any other end."""
    limit, stall = settings.max_seconds + SCORING_SECONDS, settings.advanced.stall_seconds
    reasons: dict[End, str] = {
        "did not begin": f"its processes had not met {START_SECONDS:.0f} s after the start",
        "too long": f"time limit of {limit:.0f} s exceeded (round.max_seconds and {SCORING_SECONDS:.0f} s for scoring)",
        "stalled": f"it made no progress for {stall:g} s (round.advanced.stall_seconds)",
    }
    return reasons.get(end, "")


def _death(status: int, folder: RoundFolder) -> str:
    how = f"ended with status {status}" if status >= 0 else f"was killed by {signal.Signals(-status).name}"
    return f"the round {how} before it could write its scores; last line of its log: {last_line(folder.log)}"
