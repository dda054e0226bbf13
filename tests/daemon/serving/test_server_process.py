"""`mfmd serve` as a process: address file, start without a version, SIGTERM with requests in flight, exit status."""

import dataclasses
import http.client
import io
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from configs.load import load_settings
from configs.settings import Settings
from daemon.errors import AddressInUse
from daemon.parts import _child_specs
from daemon.runtime.activity import ChildActivity
from daemon.runtime.backoff import Backoff
from daemon.runtime.run_record import current_record, publish_record
from daemon.runtime.supervisor import Supervisor
from daemon.serving.server import serve
from tests.daemon.serving.serving_world import CLASSES, LIGHT, World, image_bytes, wait_until

ENDS_ON_ORDER = """
import sys
from pathlib import Path
from daemon.cli import main
from daemon.serving.batcher import Batcher

order, real = Path(sys.argv[1]), Batcher._next_batch

def next_batch(batcher):
    if order.exists():
        order.unlink()
        raise AssertionError("a bug")
    return real(batcher)

Batcher._next_batch = next_batch
sys.exit(main(sys.argv[2:]))
"""
"""The real program; the batcher's thread dies of a bug once the file that is its first argument exists."""


def config_file(world: World) -> Path:
    path = world.root / "mfmd.yaml"
    serving = {"port": 0, "device": "cpu", "threads": 1, "advanced": {"follow_seconds": 0.05}}
    content = {"state": "state", "classes": CLASSES, "watch": {"folder": "drop"}, "serving": serving}
    path.write_text(json.dumps(content))  # JSON is YAML
    return path


@contextmanager
def process(world: World) -> Iterator[tuple[subprocess.Popen[bytes], httpx.Client]]:
    """`mfmd serve` and a client to the address that it wrote."""
    command = [sys.executable, "-m", "daemon.cli", "serve", "--config", str(config_file(world))]
    log = world.root / "log"
    with log.open("wb") as stderr, subprocess.Popen(command, stderr=stderr) as child:
        try:
            wait_until(
                lambda: world.layout.run_file("serve").exists() or child.poll() is not None, "serve.json is written", 60
            )
            assert child.poll() is None, log.read_text()
            run = json.loads(world.layout.run_file("serve").read_text())
            assert run["pid"] == child.pid and run["host"] == "127.0.0.1" and run["port"] > 0 and run["started"] > 0
            with httpx.Client(base_url=f"http://127.0.0.1:{run['port']}", timeout=30) as client:
                yield child, client
        finally:
            if child.poll() is None:
                child.kill()


def refused(address: tuple[str, int]) -> bool:
    try:
        socket.create_connection(address).close()
    except ConnectionRefusedError:
        return True
    return False


def test_serve_from_nothing_to_a_clean_stop(world: World) -> None:
    with process(world) as (child, client):
        assert client.get("/healthz").status_code == 200
        assert client.post("/v1/segment", content=image_bytes()).status_code == 503
        version = world.add(1, **LIGHT)
        wait_until(lambda: client.get("/readyz").status_code == 200, "the first version is loaded")
        broken = client.post("/v1/segment", content=b"x", headers={"Content-Type": "multipart/form-data"})
        assert broken.json()["code"] == "multipart_invalid"
        address, body = (client.base_url.host, client.base_url.port or 0), image_bytes(150, 200)
        with socket.create_connection(address, timeout=30) as wire:
            head = (
                f"POST /v1/segment HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\nExpect: 100-continue\r\n\r\n"
            )
            wire.sendall(head.encode())
            assert wire.recv(4096).startswith(b"HTTP/1.1 100"), "the request is in progress"
            child.send_signal(signal.SIGTERM)
            wait_until(lambda: refused(address), "no new connections are taken")
            wire.sendall(body)
            answer = http.client.HTTPResponse(wire)
            answer.begin()
            assert answer.status == 200 and answer.headers["X-Checkpoint-Version"] == str(version)
            assert np.asarray(Image.open(io.BytesIO(answer.read()))).shape == (150, 200)
        assert child.wait(30) == 0, (world.root / "log").read_text()
    assert not world.layout.run_file("serve").exists()
    lines = [json.loads(line) for line in (world.root / "log").read_text().splitlines()]
    assert {"serving_listens", "version_serves", "serving_stopped"} <= {line["event"] for line in lines}
    assert not [line for line in lines if line["level"] == "error"], "what a client did wrong is no error of ours"


def test_an_address_in_use_is_one_clear_error(world: World) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        settings: Settings = world.settings(port=port)
        with pytest.raises(AddressInUse, match=rf"serving\.port {port}: .* by process {os.getpid()} \("):
            serve(settings)
    with pytest.raises(AddressInUse, match="no-such-host"):
        serve(world.settings(host="no-such-host.invalid"))
    assert not world.layout.run_file("serve").exists()


def test_another_servers_address_file_is_left_alone(world: World) -> None:
    from daemon.serving.server import _remove_record

    path = world.layout.run_file("serve")
    record = publish_record(world.layout, "serve", "h", 1)
    path.write_text(record.model_copy(update={"pid": os.getppid()}).model_dump_json())
    _remove_record(world.layout)
    assert path.exists()
    publish_record(world.layout, "serve", "h", 1)
    _remove_record(world.layout)
    assert not path.exists()


def test_a_plane_whose_batcher_died_is_started_again_by_its_supervisor(world: World) -> None:
    version, config, order = world.add(1, **LIGHT), config_file(world), world.root / "order"
    [spec] = [item for item in _child_specs(load_settings(config), config) if item.name == "serve"]
    [python, *_] = spec.command
    arguments = spec.command[spec.command.index("daemon.cli") + 1 :]
    spec = dataclasses.replace(spec, command=[python, "-c", ENDS_ON_ORDER, str(order), *arguments])
    world.layout.create()
    supervisor = Supervisor([spec], world.layout, Backoff(base=0.05, cap=0.2))

    def state() -> ChildActivity:
        supervisor.step()
        return supervisor.states()[0]

    def serves() -> bool:
        """The child that runs now is the one that published its address, and it is ready."""
        pid, run = state().pid, current_record(world.layout, "serve")
        if run is None or run.pid != pid:
            return False
        client.base_url = httpx.URL(f"http://127.0.0.1:{run.port}")
        return client.get("/readyz").status_code == 200

    try:
        with httpx.Client(timeout=30) as client:
            wait_until(serves, "the plane serves", 60, step=0.05)
            first = state().pid
            order.touch()
            assert client.post("/v1/segment", content=image_bytes()).status_code == 200, "the last one that it answers"
            wait_until(lambda: state().last_exit is not None, "the plane ends by itself", 60)
            assert state().last_exit == 1 and not order.exists()
            wait_until(serves, "another one serves", 60, step=0.05)
            assert state().pid != first and state().restarts == 1
            answer = client.post("/v1/segment", content=image_bytes())
            assert answer.status_code == 200 and answer.headers["X-Checkpoint-Version"] == str(version)
    finally:
        supervisor.terminate()
        supervisor.finish()
    assert not world.layout.run_file("serve").exists() and supervisor.states()[0].last_exit == 1
