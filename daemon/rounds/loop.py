"""The daemon's thread for rounds: starts one when the schedule or an operator asks, and waits for its end."""

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from structlog.contextvars import bound_contextvars

from adapters.tracing import spans
from configs.settings import Settings
from daemon.errors import NotEnoughFrames, RoundRunning, Stopping
from daemon.gate.shadow import end_shadow, open_trial
from daemon.gate.suggestion import settle_suggestions
from daemon.metrics import RoundMetrics
from daemon.rounds.history import schedule_state, summarise
from daemon.rounds.recovery import finish_round
from daemon.rounds.runner import RoundContext, RoundFailed, RoundSuspended, check_frames, continue_round, launch_round
from daemon.rounds.schedule import Held, Trigger, due, settles
from daemon.runtime.logs import get_logger
from storage.buffer.frames import FrameBuffer
from storage.layout import StateLayout
from storage.registry.registry import CheckpointRegistry
from storage.rounds.folder import RoundStore
from storage.rounds.records import Effort, Progress
from storage.rounds.verdict import Verdict

POLL_SECONDS = 1.0
"""Interval between two evaluations of the schedule (seconds)."""
REFUSED_SECONDS = 30.0
"""Pause after a round that was due could not begin (seconds); a request wakes it sooner."""

log = get_logger(__name__)


class RoundLoop:
    """Runs rounds one at a time. One thread calls `step`; any thread may call the rest."""

    def __init__(
        self,
        settings: Settings,
        buffer: FrameBuffer,
        registry: CheckpointRegistry,
        metrics: RoundMetrics,
        *,
        interrupted: int | None = None,
        wake: Callable[[], object] = lambda: None,
    ) -> None:
        """Set up; `interrupted` is the round to resume before any other starts (`recovery.recover`).

        `wake` runs the next step at once.
        """
        self.settings = settings
        """Of the next round; a reload replaces them."""
        self._buffer, self._registry = buffer, registry
        self._metrics = metrics
        self._store = RoundStore(StateLayout(settings.state).rounds)
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._requested = False
        self._interrupted = self._running = interrupted
        self._wake = wake
        self._held: Held = "none"

    @property
    def running(self) -> int | None:
        """Return the number of the round that runs or is about to."""
        return self._running

    def request(self) -> int:
        """Start a round now; return its number.

        Raises RoundRunning, NotEnoughFrames, NoCheckpoint, or Stopping while the daemon stops.
        """
        self._registry.serving_version()
        check_frames(self._buffer.records(), self.settings)
        with self._lock:
            if self._stop.is_set():
                raise Stopping("the daemon is stopping and starts no round; retry when it runs")
            if self._running is not None:
                raise RoundRunning(f"round {self._running} is running; only one runs at a time")
            self._requested, self._running = True, self._store.next_number()
            number = self._running
        self._wake()
        return number

    def step(self) -> float:
        """Run a round if one is due; return the seconds until the next call."""
        if self._stop.is_set():
            return POLL_SECONDS
        if self._interrupted is None:
            self._finish_latest()
        if self._interrupted is not None:
            work = partial(continue_round, number=self._interrupted)
        elif (claim := self._claim()) is not None:
            work = partial(launch_round, trigger=claim[0], effort=claim[1])
        else:
            return POLL_SECONDS
        try:
            number = self._running  # every line and span of this thread names it, the gate's too
            with bound_contextvars(round=number), spans.span("mfmd.round", round=number):
                return self._run(work)
        finally:
            self._let_go()

    def stop(self) -> None:
        """End the running round, and start no other."""
        with self._lock:
            self._stop.set()
        self._wake()

    def _finish_latest(self) -> None:
        """Judge the newest round again if that failed before, for example on a full disk."""
        latest = self._store.latest()
        if latest is not None:
            finish_round(latest, self._registry, self.settings)
        settle_suggestions(self._registry, self.settings)
        number = open_trial(self._store)
        if number is None:
            end_shadow(self._registry, "no round waits for it")
            return
        with self._lock:
            self._interrupted = number
            if not self._requested:
                self._running = number

    def _claim(self) -> tuple[Trigger, Effort] | None:
        """Return trigger and effort of a round that starts now, or None. Another request is refused after this."""
        state, now = schedule_state(self._buffer.catalog, self._store, self._registry), time.time()
        scheduled, following = due(now, state, self.settings)
        if following.held != self._held:
            self._held = following.held
            log.info("round_held", why=following.held, reason=following.waiting_for)
        if following.held == "refused":  # it is tried again, with the frames of now
            scheduled, following = due(now, replace(state, refused=""), self.settings)
        with self._lock:
            if self._requested:  # one who asks right after dropping frames waits until they can be judged
                return None if settles(now, state, self.settings) else ("manual", "full")
            if scheduled is not None:
                self._running = self._store.next_number()
        return (scheduled, following.effort) if scheduled is not None else None

    def _let_go(self) -> None:
        """Record that the round has ended. Keep a request from before an open round was found."""
        with self._lock:
            self._requested = self._requested and self._interrupted is not None
            self._running = self._store.next_number() if self._requested else None
            self._interrupted = None
        self._metrics.in_progress.set(0)
        self._metrics.show_phase(None)

    def _run(self, work: Callable[[RoundContext], Verdict]) -> float:
        """Run one round; return the seconds until the next step."""
        self._metrics.in_progress.set(1)
        self._metrics.last_progress.set_to_current_time()
        context = RoundContext(self.settings, self._buffer, self._registry, self._stop, self._show, suspends=True)
        try:
            verdict = work(context)
        except RoundSuspended:
            return POLL_SECONDS
        except RoundFailed as error:
            log.error("round_failed", round=error.verdict.round, reason=error.reason)
            verdict = error.verdict
        except NotEnoughFrames as error:
            log.warning("round_not_started", reason=str(error))
            return REFUSED_SECONDS
        spans.note(decision=verdict.decision, version=verdict.version)
        self._count(verdict)
        return POLL_SECONDS

    def _show(self, progress: Progress) -> None:
        self._metrics.last_progress.set(progress.at)
        self._metrics.show_phase(progress.phase)
        if progress.phase == "shadow":
            self._metrics.shadow_images.set(progress.step)
            self._metrics.shadow_agreement.set(progress.agreement or 0.0)
            return
        self._metrics.step.set(progress.step)
        self._metrics.step_target.set(progress.steps)
        for kind, size in progress.memory.items():
            self._metrics.memory.labels(kind).set(size)
        for part, loss in progress.losses.items():
            self._metrics.loss.labels(part=part).set(loss)
        if progress.kept_ratio is not None:
            self._metrics.kept_ratio.set(progress.kept_ratio)
        if progress.images_per_second is not None:
            self._metrics.images_per_second.set(progress.images_per_second)

    def _count(self, verdict: Verdict) -> None:
        self._metrics.verdicts.labels(decision=verdict.decision).inc()
        for check in verdict.checks:
            self._metrics.failures.labels(gate=check.name).inc(not check.passed)
        numbers = self._store.numbers()
        if verdict.round in numbers:
            summary = summarise(self._store.folder(verdict.round))
            self._metrics.runs.labels(result=summary.result).inc()
            self._metrics.seconds.observe(summary.seconds or 0.0)
