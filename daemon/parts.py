"""The parts of a running daemon: built, connected, started and stopped together."""

import math
import threading
from pathlib import Path

from configs.settings import Settings
from daemon.control.app import create_control_app
from daemon.control.context import ControlContext
from daemon.control.label_tasks import LabelTasks
from daemon.control.state_metrics import StateCollector
from daemon.gate.drift import DriftRule
from daemon.gate.loop import GateLoop
from daemon.gate.memory import ConditionMemory
from daemon.gate.probation import ProbationRule
from daemon.gate.recall import RecallRule
from daemon.ingest.worker import Ingest
from daemon.metrics import Metrics
from daemon.notify.notifier import Notifier
from daemon.publishing.publisher import Publisher
from daemon.rounds.loop import RoundLoop
from daemon.rounds.recovery import recover
from daemon.rounds.runner import GRACE_SECONDS
from daemon.runtime.activity import Activity, ActivityWriter, IngestActivity
from daemon.runtime.health import Health
from daemon.runtime.heartbeat import BeatProbe
from daemon.runtime.in_force import SNAPSHOT, SettingsInForce
from daemon.runtime.logs import get_logger
from daemon.runtime.process_group import PYTHON, end_leftovers
from daemon.runtime.supervisor import CHILD_SECONDS, PLANE_SECONDS, ChildSpec, Supervisor
from daemon.runtime.worker import JOIN_SECONDS, Worker
from daemon.status.plane_probe import PlaneProbe
from daemon.status.self_check import SelfCheck
from daemon.watch.events import Hints
from storage.buffer.frames import BrokenBuffer, FrameBuffer
from storage.errors import AlreadyRunning, BufferMismatch, DurabilityLost, StorageError
from storage.layout import StateLayout
from storage.registry.registry import CheckpointRegistry

log = get_logger(__name__)


class DaemonParts:
    """All parts that run under the state directory's lock."""

    def __init__(self, in_force: SettingsInForce, token: str) -> None:
        """Open the buffer, clean up after a crash, build the parts; nothing runs yet.

        With a damaged buffer, or one that a newer mfmd wrote, ingest, rounds and gate wait until a restart.
        """
        self._in_force, settings = in_force, in_force.now
        self._settings = settings
        self._layout = StateLayout(settings.state)
        self._registry = CheckpointRegistry(self._layout.checkpoints)
        self.metrics = Metrics(settings)
        self._buffer_problem, interrupted = "", None
        try:
            self._buffer = FrameBuffer.open(self._layout, settings.buffer, writable=True)
            interrupted = self._recover()
        except (BufferMismatch, AlreadyRunning, DurabilityLost):
            raise
        except StorageError as error:  # a fault of the buffer: serving does not need it
            self._buffer_problem = str(error)
            end_leftovers(self._layout, GRACE_SECONDS)
            log.error("buffer_unusable", reason=self._buffer_problem, waits=["ingest", "rounds", "gate"])
            self._buffer = BrokenBuffer(self._layout, self._buffer_problem)
        try:
            self._build(token, interrupted)
        except BaseException:
            self._buffer.close()
            raise

    def _recover(self) -> int | None:
        try:
            return recover(self._settings, self._buffer, self._registry)
        except BaseException:
            self._buffer.close()
            raise

    def _build(self, token: str, interrupted: int | None) -> None:
        config = self._layout.run_file(SNAPSHOT)  # what children are started with
        wake_ingest, wake_rounds = threading.Event(), threading.Event()
        self._ingest = Ingest(self._settings, self._buffer, self.metrics.ingest, Hints(wake_ingest.set))
        self._rounds = RoundLoop(
            self._settings,
            self._buffer,
            self._registry,
            self.metrics.rounds,
            interrupted=interrupted,
            wake=wake_rounds.set,
        )
        rules = (ConditionMemory(), ProbationRule(), RecallRule(), DriftRule())
        self._gate = GateLoop(self._settings, self._buffer, self._registry, rules)
        self._supervisor = Supervisor(_child_specs(self._settings, config), self._layout)
        self._publisher = Publisher(self._settings, config, self._registry, self.metrics.publish)
        self._notifier = Notifier(self._settings, self._registry, self._supervisor.states, self.metrics.notify)
        self._activity = ActivityWriter(self._layout.run_file("activity"), self._snapshot)
        meter = self.metrics.process
        self._ingest_worker = Worker("ingest", self._ingest.step, meter, wake=wake_ingest)
        self._workers = [
            Worker("supervisor", self._supervisor.step, meter),
            self._ingest_worker,
            Worker("folders", self._ingest.check_folders, meter, stuck_seconds=math.inf),
            Worker(  # a step lasts as long as a round, which is given its grace period at the end
                "rounds",
                self._step_rounds,
                meter,
                wake=wake_rounds,
                stuck_seconds=math.inf,
                join_seconds=JOIN_SECONDS + GRACE_SECONDS,
            ),
            Worker("gate", self._gate.step, meter),
            Worker("publish", self._publisher.step, meter),
            Worker("notify", self._notifier.step, meter),
            Worker("activity", self._activity.step, meter),
        ]
        self._self_check = SelfCheck(self._layout, meter)
        self._checker = Worker("self_check", self._self_check.step, meter)  # it only reads: nothing waits for it
        self.health = Health(self._workers, self._registry, self._supervisor.states)
        self._collector = StateCollector(self._settings, self._buffer.catalog, self._supervisor.states)
        self.metrics.registry.register(self._collector)
        self._labels = LabelTasks(self._layout)
        context = ControlContext(
            self._in_force,
            self._registry,
            self._rounds,
            self.metrics,
            self.health,
            token,
            self._ingest.retries,
            self._gate,
            self._labels,
            lambda: self._activity.now,
        )
        self.app, self.local_app = create_control_app(context), create_control_app(context, local=True)
        self._in_force.after_reload = self._reloaded
        self._use(self._in_force.now)  # a reload may have come while the parts were built

    def _reloaded(self, done: bool) -> None:
        self.metrics.process.reloads.labels(result="ok" if done else "refused").inc()
        self._use(self._in_force.now)

    def _use(self, settings: Settings) -> None:
        """Pass settings to every part with live settings; a running round keeps its own."""
        self.metrics.process.show(settings)
        self._rounds.settings = self._gate.settings = self._collector.settings = settings
        self._notifier.settings = settings
        self._ingest.use(settings)

    def _step_rounds(self) -> float:
        """Leave every round as it is while the buffer cannot be used: one that was interrupted may still resume."""
        if self._buffer_problem:
            raise StorageError(self._buffer_problem)
        return self._rounds.step()

    def start(self) -> None:
        """Start every thread."""
        for worker in (*self._workers, self._checker):
            worker.start()

    def stop(self) -> None:
        """Stop rounds, children and threads, all at once.

        Stopping takes a few seconds; with requests in flight at most `PLANE_SECONDS`.
        """
        for worker in (*self._workers, self._checker):
            worker.ask_to_stop()
        self._rounds.stop()
        self._labels.close()
        self._supervisor.terminate()  # without a thread of its own: the system may have none left
        stuck = [worker.name for worker in self._workers if not worker.join()]
        self._supervisor.finish()
        self._publisher.stop()
        if not self._ingest_worker.failed and self._ingest_worker.name not in stuck:
            self._ingest.close()
        if stuck:
            log.error("components_stuck", components=stuck)  # they may still use the buffer; the process ends anyway
        else:
            self._buffer.close()
        self._activity.close()
        self._checker.join()

    def _snapshot(self) -> Activity:
        watch, ingest = self._ingest.activity
        if self._ingest_worker.failed:
            ingest = IngestActivity(state="failed", reason=self._ingest_worker.last_error or "")
        errors = {item.name: item.last_error for item in self._workers if item.last_error and not item.failed}
        children, mirrors, file = self._supervisor.states(), self._publisher.states(), self._in_force.compare()
        self.metrics.process.compared(file)
        return Activity(
            watch=watch,
            ingest=ingest,
            children=children,
            mirrors=mirrors,
            settings=file,
            errors=errors,
            damage=self._self_check.problem,
        )


def _child_specs(settings: Settings, config: Path) -> list[ChildSpec]:
    """Return the children that the settings ask for, each with its grace period."""
    wanted = {
        "serve": (settings.serving.enabled, PLANE_SECONDS),
        "observe": (settings.observe.enabled, CHILD_SECONDS),
        "masks": (settings.masks.folder is not None, CHILD_SECONDS),
        "frames": (settings.videos.enabled, CHILD_SECONDS),
    }
    command = [*PYTHON, "-m", "daemon.cli"]
    layout, specs = StateLayout(settings.state), []
    for name, (enabled, grace) in wanted.items():
        serves = name == "serve"
        probe = PlaneProbe(layout) if serves else BeatProbe(layout, name)
        line = [*command, name, "--config", str(config)]
        specs += [ChildSpec(name, line, grace_seconds=grace, probe=probe, tells_ready=serves)] if enabled else []
    return specs
