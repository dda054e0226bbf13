"""The page on a real socket."""

from collections.abc import Iterator
from types import SimpleNamespace

import httpx
import pytest

from daemon.control.app import create_control_app
from daemon.control.server import ControlServer, bind
from tests.daemon.control.control_world import TOKEN, make_context


@pytest.fixture
def page(bench, registry, add_version) -> Iterator[SimpleNamespace]:
    """Versions 1 to 3, the last of which serves; the page answers."""
    for parent in (None, 1, 2):
        add_version(parent)
    made = bench()
    context, _, _ = make_context(made, registry)
    server = ControlServer(create_control_app(context), bind(made.settings.control))
    server.start()
    host, port = server.address
    with httpx.Client(base_url=f"http://{host}:{port}", trust_env=False, verify=False) as client:

        def send(headers: dict[str, str] | None = None, path: str = "/rollback", **changes: str) -> httpx.Response:
            form = {"token": TOKEN, "serving": "3", "to": "", "reason": "poles vanish"} | changes
            return client.post(path, data=form, headers=headers or {})

        yield SimpleNamespace(
            client=client, send=send, origin=f"http://{host}:{port}", server=server, bench=made, context=context
        )
    server.stop()
