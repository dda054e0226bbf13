"""The parts of a running daemon and how they hang together: built, started and stopped as one."""

import sys
import threading
from functools import partial
from pathlib import Path

from configs.settings import Settings
from daemon.control.app import ControlContext, create_control_app
from daemon.control.state_metrics import StateCollector
from daemon.ingest.worker import Ingest
from daemon.metrics import Metrics
from daemon.publishing.publisher import Publisher
from daemon.rounds.loop import RoundLoop
from daemon.rounds.recovery import recover
from daemon.rounds.runner import GRACE_SECONDS
from daemon.runtime.activity import Activity, ActivityWriter, IngestActivity
from daemon.runtime.health import Health
from daemon.runtime.in_force import SNAPSHOT, SettingsInForce
from daemon.runtime.logs import get_logger
from daemon.runtime.supervisor import CHILD_SECONDS, PLANE_SECONDS, ChildSpec, Supervisor
from daemon.runtime.worker import Component
from daemon.status.plane_probe import plane_problem
from daemon.watch.events import Hints
from storage.buffer.frames import FrameBuffer
from storage.layout import StateLayout
from storage.registry.registry import CheckpointRegistry

JOIN_SECONDS = 5.0
"""How long a thread may take for the step it is in (seconds)."""

log = get_logger(__name__)


class DaemonParts:
    """Everything that runs under the state directory's lock."""

    def __init__(self, in_force: SettingsInForce, token: str) -> None:
        """Open the buffer, clean up after a crash, build the parts; nothing runs yet."""
        self._in_force, settings = in_force, in_force.now
        self._settings = settings
        self._layout = StateLayout(settings.state)
        self._registry = CheckpointRegistry(self._layout.checkpoints)
        self.metrics = Metrics(settings)
        self._buffer = FrameBuffer.open(self._layout, settings.buffer, writable=True)
        try:
            interrupted = recover(settings, self._buffer, self._registry)
            self._build(token, interrupted)
        except BaseException:
            self._buffer.close()
            raise

    def _build(self, token: str, interrupted: int | None) -> None:
        config = self._layout.run_file(SNAPSHOT)  # what children are started with
        hints = Hints(lambda: self._ingest_thread.wake())
        self._ingest = Ingest(self._settings, self._buffer, self.metrics.ingest, hints)
        self._rounds = RoundLoop(
            self._settings, self._buffer, self._registry, self.metrics.rounds, interrupted=interrupted
        )
        self._supervisor = Supervisor(_child_specs(self._settings, config), self._layout)
        self._publisher = Publisher(self._settings, config, self._registry, self.metrics.publish)
        self._activity = ActivityWriter(self._layout.run_file("activity"), self._look)
        meter = self.metrics.process
        self._ingest_thread = Component("ingest", self._ingest.step, meter)
        self._round_thread = Component("rounds", self._rounds.step, meter)
        self._rounds.wake = self._round_thread.wake
        self._components = [
            Component("supervisor", self._supervisor.step, meter),
            self._ingest_thread,
            self._round_thread,
            Component("publish", self._publisher.step, meter),
            Component("activity", self._activity.step, meter),
        ]
        health = Health(
            self._components, may_take_long="rounds", registry=self._registry, children=self._supervisor.states
        )
        self._collector = StateCollector(self._settings, self._buffer.catalog, self._supervisor.states)
        self.metrics.registry.register(self._collector)
        context = ControlContext(
            self._in_force, self._registry, self._rounds, self.metrics, health, token, self._ingest.retries
        )
        self.app, self.local_app = create_control_app(context), create_control_app(context, local=True)
        self._in_force.after_reload = self._reloaded

    def _reloaded(self, done: bool) -> None:
        """Let every part with live settings use those in force now; a round that runs keeps its own."""
        self.metrics.process.reloads.labels(result="ok" if done else "refused").inc()
        settings = self._in_force.now
        self.metrics.process.show(settings)
        self._rounds.settings = self._collector.settings = settings
        self._ingest.use(settings)

    def start(self) -> None:
        """Start every thread."""
        for component in self._components:
            component.start()

    def stop(self) -> None:
        """Stop rounds, children and threads, all at once.

        Then nothing of the daemon runs: after a few seconds, or, with requests in flight, within `PLANE_SECONDS`.
        """
        for component in self._components:
            component.ask_to_stop()
        self._rounds.stop()
        children = threading.Thread(target=self._supervisor.stop, name="stop-children")
        children.start()
        stuck = [part.name for part in self._components if not part.join(_patience(part))]
        children.join()
        self._publisher.stop()
        if not self._ingest_thread.failed and self._ingest_thread.name not in stuck:
            self._ingest.close()
        if stuck:
            log.error("components_stuck", components=stuck)  # they may still use the buffer; the process ends anyway
        else:
            self._buffer.close()
        self._activity.close()

    def _look(self) -> Activity:
        watch, ingest = self._ingest.activity
        if self._ingest_thread.failed:
            ingest = IngestActivity(state="failed", reason=self._ingest_thread.trouble or "")
        trouble = {part.name: part.trouble for part in self._components if part.trouble and not part.failed}
        children, mirrors, file = self._supervisor.states(), self._publisher.states(), self._in_force.compare()
        self.metrics.process.compared(file)
        return Activity(watch=watch, ingest=ingest, children=children, mirrors=mirrors, settings=file, trouble=trouble)


def _patience(part: Component) -> float:
    """How long to wait for the end of a step: a round is given its grace period first."""
    return JOIN_SECONDS + (GRACE_SECONDS if part.name == "rounds" else 0.0)


def _child_specs(settings: Settings, config: Path) -> list[ChildSpec]:
    """The children that the settings ask for, each with the time that it needs to end by itself."""
    wanted = {
        "serve": (settings.serving.enabled, PLANE_SECONDS),
        "observe": (settings.observe.enabled, CHILD_SECONDS),
        "masks": (settings.masks.folder is not None, CHILD_SECONDS),
        "frames": (settings.videos.enabled, CHILD_SECONDS),
    }
    command = [sys.executable, "-m", "daemon.cli"]
    probes = {"serve": partial(plane_problem, StateLayout(settings.state))}
    return [
        ChildSpec(name, [*command, name, "--config", str(config)], grace_seconds=grace, probe=probes.get(name))
        for name, (enabled, grace) in wanted.items()
        if enabled
    ]
