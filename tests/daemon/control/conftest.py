"""A control server on a real socket; its clients load no list of authorities, which takes 20 ms."""

from collections.abc import Iterator
from types import SimpleNamespace

import httpx
import pytest

from daemon.control.app import create_control_app
from daemon.control.server import ControlServer, bind
from tests.daemon.control.control_world import make_context


@pytest.fixture
def world(bench, registry, add_version, drop, write_image) -> Iterator[SimpleNamespace]:
    """A control server on a state directory with version 1 serving and six frames."""
    add_version()
    made = bench()
    for number in range(6):
        write_image(drop / f"{number}.png", number)
    made.until(lambda: made.counts.frames == 6)
    settings, context, parts, children = made.settings, *make_context(made, registry)
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
            rounds=context.rounds,
            server=server,
            settings=settings,
            bench=made,
            gate=context.gate,
        )
    server.stop()
    for part in parts:
        part.ask_to_stop()
        part.join()
