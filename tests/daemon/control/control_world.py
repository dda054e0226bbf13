"""The context of a control plane, what its tests send, and a suggestion for them to decide about."""

from daemon.control.context import ControlContext
from daemon.control.label_tasks import LabelTasks
from daemon.control.state_metrics import StateCollector
from daemon.gate.loop import GateLoop
from daemon.metrics import Metrics
from daemon.rounds.loop import RoundLoop
from daemon.runtime.activity import ChildActivity
from daemon.runtime.health import Health
from daemon.runtime.in_force import SettingsInForce
from daemon.runtime.worker import Worker
from storage.layout import StateLayout
from storage.rounds.folder import RoundFolder, RoundStore
from storage.rounds.records import RoundScores, RoundSpec
from storage.rounds.verdict import Verdict

TOKEN = "correct horse"
AUTHORISED = {"Authorization": f"Bearer {TOKEN}"}
JSON = {"Content-Type": "application/json"}
CHANGES = ["/v1/rounds", "/v1/reload", "/v1/rollback", "/v1/promote", "/v1/checkpoints/1/pin"]
CHANGES += ["/v1/checkpoints/1/unpin", "/v1/refused/retry", "/v1/approve", "/v1/reject", "/v1/pause", "/v1/resume"]
CHANGES += [f"/v1/conditions/1/{change}" for change in ("merge", "rename", "forget")]


def make_context(bench, registry) -> tuple[ControlContext, list[Worker], list[ChildActivity]]:
    """A context on a bench, its workers, and the children that it reports."""
    settings, metrics = bench.settings, Metrics(bench.settings)
    in_force = SettingsInForce(settings, settings.state / "mfmd.yaml")
    rounds = RoundLoop(settings, bench.buffer, registry, metrics.rounds)
    gate = GateLoop(settings, bench.buffer, registry, [])
    parts = [Worker("ingest", lambda: 0.05, metrics.process), Worker("rounds", lambda: 0.05, metrics.process)]
    children: list[ChildActivity] = []
    health = Health(parts, registry, lambda: children)
    metrics.registry.register(StateCollector(settings, bench.buffer.catalog, list))
    labels = LabelTasks(StateLayout(settings.state))
    retries = bench.ingest.retries
    context = ControlContext(in_force, registry, rounds, metrics, health, TOKEN, retries, gate, labels)
    return context, parts, children


def suggestion(layout: StateLayout, version: int, incumbent: int = 3) -> RoundFolder:
    """A round on `incumbent` whose candidate `version` waits."""
    spec = RoundSpec(
        round=1, incumbent=incumbent, released=1, train_frames=(), holdout_frames=(), settings={}, created=1.0,
        trigger="manual",
    )  # fmt: skip
    folder = RoundStore(layout.rounds).create(spec)
    verdict = Verdict(round=1, decision="accepted", reason="4 of 4", checks=[], at=1.0, version=version)
    folder.write_scores(RoundScores(status="completed", reason="step budget", steps=3, seconds=1.0))
    folder.write_verdict(verdict)
    folder.enter("suggested", reason="waits")
    return folder
