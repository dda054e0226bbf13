"""Children that must run: start them, restart them with growing delays if they end or hang, stop them together.

A child is up when its probe says so (`ChildSpec.probe`), one without a probe while it runs. After an end a child whose
probe cannot say that it is ready is up only once it has run for a while: one in a crash loop is reported as down.
"""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from daemon.errors import describe_error
from daemon.runtime.activity import ChildActivity
from daemon.runtime.backoff import Backoff
from daemon.runtime.heartbeat import remove_beat, take_reason
from daemon.runtime.logs import get_logger
from daemon.runtime.process_group import ProcessGroup
from storage.layout import StateLayout

TICK_SECONDS = 0.2
CHILD_SECONDS = 8.0
"""Time between SIGTERM and SIGKILL for what the daemon started (seconds)."""
REQUESTS_SECONDS = 30
"""Longest wait of the inference plane for requests in flight at its end (seconds)."""
PLANE_SECONDS = REQUESTS_SECONDS + CHILD_SECONDS
"""As `CHILD_SECONDS` for the inference plane: its requests first, then its threads. Without requests it ends in 1 s."""
STABLE_SECONDS = 60.0
"""A child that ran this long starts with the shortest delay again (seconds)."""
SETTLED_SECONDS = 10.0
"""A restarted child whose probe tells only that it lives does its work after this time (seconds)."""
PROBE_SECONDS = 1.0
"""Pause between two probes of a child (seconds)."""
SILENT_PROBES = 3
"""After so many probes without an answer a child is reported."""
HUNG_PROBES = 30
"""After so many it is killed and restarted: about a minute, as the inference plane is given 1 s for each answer; 40 s
for a child that beats (`heartbeat.py`)."""
RESTARTS = Backoff(base=1.0, cap=60.0, jitter=0.2)
"""Delays between restarts of a child."""

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class ChildSpec:
    """A child that must run."""

    name: str
    command: Sequence[str]
    nice: int = 0
    """Added to our own nice value."""
    grace_seconds: float = CHILD_SECONDS
    """Time between SIGTERM and SIGKILL (seconds)."""
    probe: Callable[[int], str | None] | None = None
    """Asks the process with this id: "" when it is ready, else why it is not; None when it does not answer."""
    tells_ready: bool = False
    """Whether "" means that it does its work, and not only that it lives."""


class _Child:
    """One child and its history. Used by one thread at a time."""

    def __init__(self, spec: ChildSpec, layout: StateLayout, backoff: Backoff) -> None:
        self.spec = spec
        self.state = ChildActivity(name=spec.name, running=False, problem="starts")
        self.group: ProcessGroup | None = None
        self._layout, self._backoff = layout, backoff
        self._failures = 0
        self._next_start = 0.0
        self._started: float | None = None
        self._next_probe = 0.0
        self._unanswered = 0
        self._answered = False

    def tick(self, now: float) -> None:
        """Detect an end, and start when it is time. `now` is monotonic (seconds)."""
        if self.group is not None and self.group.poll() is not None:
            self._ended(self.group.poll(), now)
        if self.group is None and now >= self._next_start:
            self._start(now)
        if self.group is not None and now >= self._next_probe:
            self._probe(self.group, now)

    def _probe(self, group: ProcessGroup, now: float) -> None:
        """Probe a child. Kill one that answered before and hangs now; the next tick restarts it."""
        answer = self.spec.probe(group.pid) if self.spec.probe is not None else ""
        self._next_probe = time.monotonic() + PROBE_SECONDS
        if answer is not None:
            self._answered, self._unanswered = True, 0
            settled = (
                self.spec.tells_ready or not self.state.restarts or now - (self._started or now) >= SETTLED_SECONDS
            )
            problem = answer if settled else f"was restarted after status {self.state.last_exit}"
            self._set(problem=problem, hangs=False, reason=self.state.reason if problem else "")
            return
        self._unanswered += 1
        if self._answered and self._unanswered >= SILENT_PROBES:
            self._set(problem="does not answer", hangs=True)
        if self._answered and self._unanswered >= HUNG_PROBES:
            log.error("child_hangs", child=self.spec.name, pid=group.pid, unanswered=self._unanswered)
            group.kill()

    def seen(self) -> ChildActivity:
        """Return the state; a child that has ended is down, even before the next tick."""
        state, group = self.state, self.group
        ended = state.running and group is not None and group.poll() is not None
        return state.model_copy(update={"running": False, "problem": "ended"}) if ended else state

    def _set(self, **changes: object) -> None:
        self.state = self.state.model_copy(update=changes)

    def _start(self, now: float) -> None:
        try:
            self.group = ProcessGroup(self._layout, self.spec.command, nice=self.spec.nice)
        except OSError as error:
            log.error("child_not_started", child=self.spec.name, error=describe_error(error))
            self._retry_later(now)
            return
        restarts, pid = self.state.restarts + (self._started is not None), self.group.pid
        self._set(
            running=True, problem="starts", hangs=False, pid=pid, since=time.time(), next_start=None, restarts=restarts
        )
        self._started, self._next_probe, self._answered, self._unanswered = now, now, False, 0
        log.info("child_started", child=self.spec.name, pid=pid)

    def _ended(self, status: int | None, now: float) -> None:
        assert self.group is not None
        self.group.kill()  # what the leader started must not outlive it
        self.group = None
        if self._started is not None and now - self._started >= STABLE_SECONDS:
            self._failures = 0
        log.warning("child_ended", child=self.spec.name, status=status)
        self._set(last_exit=status, reason=take_reason(self._layout, self.spec.name))
        self._retry_later(now)

    def _retry_later(self, now: float) -> None:
        self._failures += 1
        delay = self._backoff.delay(self._failures)
        self._next_start = now + delay
        problem = f"ended with status {self.state.last_exit}"
        self._set(running=False, problem=problem, hangs=False, pid=None, next_start=time.time() + delay)

    def terminate(self) -> None:
        """Send SIGTERM to the group, if it runs."""
        if self.group is not None:
            self.group.terminate()

    def finish(self, seconds: float) -> None:
        """Wait for the terminated group, then kill it; the child is stopped for good."""
        if self.group is not None:
            status = self.group.finish(seconds)
            log.info("child_stopped", child=self.spec.name, status=status)
            remove_beat(self._layout, self.spec.name)
        self.group = None
        self._set(running=False, problem="is stopped", hangs=False, pid=None, next_start=None)


class Supervisor:
    """Keeps children running until `terminate`."""

    def __init__(self, specs: Sequence[ChildSpec], layout: StateLayout, backoff: Backoff = RESTARTS) -> None:
        self._children = [_Child(spec, layout, backoff) for spec in specs]
        self._lock = threading.Lock()
        self._stopping, self._terminated = False, 0.0

    def step(self) -> float:
        """Start children that should run and do not; return the seconds until the next call."""
        with self._lock:
            if not self._stopping:
                for child in self._children:
                    child.tick(time.monotonic())
        return TICK_SECONDS

    def states(self) -> list[ChildActivity]:
        """Return what each child does now. May be called from any thread."""
        return [child.seen() for child in self._children]

    def terminate(self) -> None:
        """Send SIGTERM to all groups at once; restart none."""
        with self._lock:
            self._stopping = True
        for child in self._children:
            child.terminate()
        self._terminated = time.monotonic()

    def finish(self) -> None:
        """Wait for the terminated groups, and send SIGKILL to each after its grace period."""
        for child in sorted(self._children, key=lambda child: child.spec.grace_seconds):
            child.finish(max(0.0, self._terminated + child.spec.grace_seconds - time.monotonic()))
