"""What the control plane works on: the parts of the daemon that its API and its page read and change."""

from collections.abc import Callable
from dataclasses import dataclass

from daemon.control.label_tasks import LabelTasks
from daemon.gate.loop import GateLoop
from daemon.ingest.refusals import RetryQueue
from daemon.metrics import Metrics
from daemon.rounds.loop import RoundLoop
from daemon.runtime.activity import Activity
from daemon.runtime.health import Health
from daemon.runtime.in_force import SettingsInForce
from storage.layout import StateLayout
from storage.registry.registry import CheckpointRegistry


@dataclass(frozen=True, slots=True)
class ControlContext:
    """The objects that the API and the page work on."""

    in_force: SettingsInForce
    registry: CheckpointRegistry
    rounds: RoundLoop
    metrics: Metrics
    health: Health
    token: str
    retries: RetryQueue
    gate: GateLoop
    labels: LabelTasks
    activity: Callable[[], Activity] = Activity
    """What the daemon does now."""

    @property
    def layout(self) -> StateLayout:
        """Return where the state lies."""
        return StateLayout(self.in_force.now.state)
