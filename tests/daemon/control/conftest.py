"""A control server on a real socket; its clients load no list of authorities, which takes 20 ms."""

from collections.abc import Iterator
from types import SimpleNamespace

import httpx
import pytest

from daemon.control.app import ControlContext, create_control_app
from daemon.control.server import ControlServer, bind
from daemon.control.state_metrics import StateCollector
from daemon.gate.loop import GateLoop
from daemon.metrics import Metrics
from daemon.rounds.loop import RoundLoop
from daemon.runtime.activity import ChildActivity
from daemon.runtime.health import Health
from daemon.runtime.in_force import SettingsInForce
from daemon.runtime.worker import Worker
from tests.daemon.control.control_world import TOKEN


@pytest.fixture
def world(bench, registry, layout, add_version, drop, write_image) -> Iterator[SimpleNamespace]:
    """A control server on a state directory with version 1 serving and six frames."""
    add_version()
    made = bench()
    for number in range(6):
        write_image(drop / f"{number}.png", number)
    made.until(lambda: made.counts.frames == 6)
    settings, metrics = made.settings, Metrics(made.settings)
    in_force = SettingsInForce(settings, layout.root / "mfmd.yaml")
    rounds = RoundLoop(settings, made.buffer, registry, metrics.rounds)
    gate = GateLoop(settings, made.buffer, registry, [])
    parts = [Worker("ingest", lambda: 0.05, metrics.process), Worker("rounds", lambda: 0.05, metrics.process)]
    children: list[ChildActivity] = []
    health = Health(parts, registry, lambda: children)
    metrics.registry.register(StateCollector(settings, made.buffer.catalog, list))
    context = ControlContext(in_force, registry, rounds, metrics, health, TOKEN, made.ingest.retries, gate)
    app = create_control_app(context)
    server = ControlServer(app, bind(settings.control))
    for part in parts:
        part.start()
    server.start()
    host, port = server.address
    with httpx.Client(base_url=f"http://{host}:{port}", trust_env=False, verify=False) as client:
        yield SimpleNamespace(
            client=client,
            children=children,
            app=app,
            local_app=create_control_app(context, local=True),
            parts=parts,
            rounds=rounds,
            server=server,
            settings=settings,
            bench=made,
            gate=gate,
        )
    server.stop()
    for part in parts:
        part.ask_to_stop()
        part.join()
