"""The servers that benchmarks/serving.py compares, each in a process of its own: `mfmd serve`, and peers by name."""

import base64
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from ingest_daemon import cpu_seconds, family
from serving_client import Decoded, Target, ask_paced
from serving_world import ServingWorld, pictures

from configs.load import without_settings

HERE = Path(__file__).resolve().parent
START_SECONDS = 90.0
PORTS_APART = 8
PEERS = ("litserve", "mlserver", "bentoml")
OURS = "mfmd serve"


@dataclass(frozen=True)
class Server:
    """A server that answers."""

    name: str
    pid: int
    target: Target

    def cpu_seconds(self) -> float:
        """Processor time that it and its children have taken."""
        return sum(cpu_seconds(pid) for pid in family(self.pid))


def _encoded(content: bytes) -> str:
    return base64.b64encode(content).decode()


def target_of(peer: str, port: int) -> Target:
    """How a peer is asked."""
    images = [_encoded(content) for content in pictures()]
    if peer == "litserve":
        bodies = [json.dumps({"image": image}).encode() for image in images]
        return Target("127.0.0.1", port, "/predict", "application/json", bodies, Decoded(("mask",)))
    if peer == "bentoml":
        bodies = [json.dumps({"images": [image]}).encode() for image in images]
        return Target("127.0.0.1", port, "/segment", "application/json", bodies, Decoded((0,)))
    tensors = [{"name": "images", "shape": [1, 1], "datatype": "BYTES", "data": [image]} for image in images]
    bodies = [json.dumps({"inputs": [tensor]}).encode() for tensor in tensors]
    path = "/v2/models/segmentation/infer"
    return Target("127.0.0.1", port, path, "application/json", bodies, Decoded(("outputs", 0, "data", 0)))


def plane_target(port: int) -> Target:
    """How our own inference plane is asked."""
    return Target("127.0.0.1", port, "/v1/segment", "image/jpeg", pictures())


@contextmanager
def serve_ours(world: ServingWorld, name: str = OURS) -> Iterator[Server]:
    """`mfmd serve` on the world's registry; `name` is what the tables call it."""
    record = world.settings.state / "run" / "serve.json"
    record.unlink(missing_ok=True)
    command = [sys.executable, "-m", "daemon.cli", "serve", "--config", str(world.config)]
    with _process(command, world.root / "serve.log", without_settings(os.environ)) as process:
        _wait(process, world.root / "serve.log", record.exists)
        target = plane_target(json.loads(record.read_bytes())["port"])
        _wait(process, world.root / "serve.log", lambda: _answers(target))
        yield Server(name, process.pid, target)


@contextmanager
def serve_peer(peer: str, python: Path, world: ServingWorld) -> Iterator[Server]:
    """Run a peer in its own environment, with the world's module, batch and threads."""
    port, serving = _free_port(), world.settings.serving
    environment = without_settings(os.environ) | {
        "PYTHONPATH": os.pathsep.join([str(HERE.parent), str(HERE / "serving_peers")]),
        "PATH": os.pathsep.join([str(python.parent), os.environ["PATH"]]),
        "BENCH_REGISTRY": str(world.registry.root),
        "BENCH_THREADS": str(serving.threads),
        "BENCH_BATCH": str(serving.max_batch_images),
        "BENCH_DELAY_MS": str(serving.advanced.max_delay_ms),
        "BENTOML_DO_NOT_TRACK": "True",
    }
    target, log = target_of(peer, port), world.root / f"{peer}.log"
    with _process([str(python), str(HERE / "serving_peers" / f"{peer}_server.py"), str(port)], log, environment) as one:
        _wait(one, log, lambda: _answers(target))
        yield Server(peer, one.pid, target)


def versions_of(python: Path, packages: Sequence[str]) -> str:
    """`name version` of packages in an environment."""
    names = "(name + ' ' + version(name) for name in sys.argv[1:])"
    code = f"import sys; from importlib.metadata import version; print(*{names}, sep=', ')"
    done = subprocess.run([str(python), "-c", code, *packages], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def _answers(target: Target) -> bool:
    return any(answer.status == 200 for answer in ask_paced(target, 10.0, 0.05))


def _free_port() -> int:
    """Return a port with two free ones after it (MLServer wants three)."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1]) // PORTS_APART * PORTS_APART


def _wait(process: "subprocess.Popen[bytes]", log: Path, condition: Callable[[], bool]) -> None:
    """Wait for a server to start; RuntimeError with the end of its log when it does not."""
    deadline = time.monotonic() + START_SECONDS
    while not condition():
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"a server did not start; {log} ends with:\n{log.read_text()[-3000:]}")
        time.sleep(0.2)


@contextmanager
def _process(command: list[str], log: Path, environment: dict[str, str]) -> Iterator["subprocess.Popen[bytes]"]:
    """Run a command as its own process group, and end it with the block."""
    with log.open("ab") as stream:
        process = _start(command, stream, environment, log.parent)
    try:
        yield process
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _start(
    command: list[str], stream: IO[bytes], environment: dict[str, str], folder: Path
) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=stream,
        stderr=subprocess.STDOUT,
        env=environment,
        cwd=folder,
        start_new_session=True,
    )
