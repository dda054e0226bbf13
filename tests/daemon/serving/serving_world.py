"""A real inference plane on a real registry with tiny networks, reached over real HTTP."""

import copy
import functools
import io
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import torch
from PIL import Image

from adapters.checkpoints.checkpoint import make_manifest, save_weights
from adapters.inference.forward import ServedForward
from adapters.networks.build import build_network
from adapters.networks.network import SegmentationNetwork
from configs.serving import ServingSettings
from configs.settings import Settings
from daemon.net.listening import listen, tls_files
from daemon.net.token import serving_address
from daemon.serving.plane import InferencePlane
from daemon.serving.server import BACKLOG, PlaneServer
from storage.durable import write_record
from storage.layout import StateLayout
from storage.media.images import ASPECT, Fit
from storage.registry.manifest import Ref
from storage.registry.registry import CheckpointRegistry
from tests.sections import placed

CLASSES = [{"name": f"class{index}", "color": [index * 40, 10, 200 - index * 30]} for index in range(5)]
HEIGHT, WIDTH = 64, 96
LIGHT = {"name": "deeplabv3plus", "encoder": "resnet_tiny"}
"""Of a version for a process of its own, which then loads no transformers."""
FEW_TIES = (30, 45)
"""Seeds of networks with few ties between classes: rounding changes few labels."""
FAVOUR = 0.03
"""Logit that a version adds to its own class: about as much as random weights make of a picture."""


def wait_until(condition: Callable[[], bool], what: str, seconds: float = 20.0, step: float = 0.005) -> None:
    """Poll `condition`; fail, saying `what` did not happen, after `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(step)


@functools.cache
def tiny_network(seed: int, *, name: str = "daformer", encoder: str = "mit_tiny") -> SegmentationNetwork:
    """A tiny network with random weights, made once for each seed: do not change it."""
    torch.manual_seed(seed)
    settings = settings_for(Path("unused"), network={"name": name, "encoder": encoder, "channels": 16})
    network = build_network(settings.network.architecture(), len(CLASSES)).eval()
    with torch.no_grad():  # versions differ everywhere: each favours its own class, and still looks at the picture
        for parameter in network.parameters():
            if parameter.shape == (len(CLASSES),):
                parameter.zero_()
                parameter[seed % len(CLASSES)] = FAVOUR
    return network


def served_form(network: SegmentationNetwork) -> ServedForward:
    """What a plane makes of these weights as it serves by default: its answers are right to the last bit."""
    return ServedForward(copy.deepcopy(network), ServingSettings(), torch.device("cpu"))


@functools.cache
def served_network(seed: int) -> ServedForward:
    """The served form of `tiny_network(seed)`, made once: do not change it."""
    return served_form(tiny_network(seed))


def settings_for(state: Path, **sections: Any) -> Settings:
    """Small frames, one CPU thread, a port of the system's choice."""
    values: dict[str, object] = {
        "state": state,
        "classes": CLASSES,
        "watch": {"folder": state.parent / "drop"},
        "buffer": {"height": HEIGHT, "width": WIDTH, "advanced": {"tile": 32}},
        "network": {"encoder": "mit_tiny", "channels": 16},
        **sections,
    }
    serving = {"port": 0, "device": "cpu", "threads": 1, "follow_seconds": 0.01, **sections.get("serving", {})}
    values["serving"] = placed(ServingSettings, serving)
    return Settings.model_validate(values)


class Forms(dict[int, ServedForward]):
    """Version -> its weights in the form that serves, made when first asked for: few tests ask."""

    def __init__(self) -> None:
        super().__init__()
        self.made_from: dict[int, SegmentationNetwork] = {}

    def __missing__(self, version: int) -> ServedForward:
        return self.setdefault(version, served_form(self.made_from[version]))


class World:
    """A state directory with a registry, and a way to add versions to it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.layout = StateLayout(root / "state")
        self.registry = CheckpointRegistry(self.layout.checkpoints)
        self.networks = Forms()

    def settings(self, **serving: object) -> Settings:
        """The settings of this state directory."""
        watch = {"folder": self.root / "drop"}
        if "max_pixels" in serving:
            watch["max_pixels"] = serving.pop("max_pixels")
        return settings_for(self.layout.root, watch=watch, serving=serving)

    def add(self, seed: int, *, promote: bool = True, **architecture: str) -> int:
        """A new version from `tiny_network(seed)`."""
        return self.add_network(tiny_network(seed, **architecture), promote=promote, **architecture)

    def add_network(
        self, network: SegmentationNetwork, *, promote: bool = True, fit: Fit = ASPECT, **architecture: str
    ) -> int:
        """A new version with these weights."""
        path = self.root / "candidate.safetensors"
        save_weights(network, path)
        settings = settings_for(self.layout.root, network={"encoder": "mit_tiny", "channels": 16, **architecture})
        manifest = make_manifest(settings, origin="pretrain")
        manifest = manifest.model_copy(update={"input_fit": fit.mode, "input_resample": fit.resample})
        version = self.registry.add(path, manifest, by="test").version
        self.networks.made_from[version] = network
        if promote:
            self.registry.promote(version, by="test", reason="test")
        return version

    def point_at(self, version: int) -> None:
        """Move the serving ref without the registry's checks: disks also rot after a promotion."""
        refs = self.registry.root / "refs"
        refs.mkdir(parents=True, exist_ok=True)
        write_record(refs / "serving", Ref(version=version, since=time.time(), by="test", reason=""))

    def corrupt(self, version: int) -> None:
        """Flip one byte of a version's weights, as a bad disk would."""
        path = self.registry.weights_path(version)
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 0xFF
        path.write_bytes(data)


class Served:
    """A running plane and an HTTP client to it."""

    def __init__(self, plane: InferencePlane, client: httpx.Client) -> None:
        self.plane = plane
        self.client = client

    def segment(self, content: bytes, **params: str) -> httpx.Response:
        """POST an image."""
        return self.client.post("/v1/segment", content=content, params=params)

    def wait_for(self, version: int) -> None:
        """Wait until `version` serves."""
        wait_until(lambda: self.client.get("/v1/serving").json()["version"] == version, f"version {version} serves")

    def wait_for_failure(self, version: int) -> dict[str, object]:
        """Wait until the failure to serve `version` is reported."""

        def failed() -> bool:
            failure = self.client.get("/v1/serving").json()["last_failure"]
            return failure is not None and failure["version"] == version

        wait_until(failed, f"version {version} fails")
        return dict(self.client.get("/v1/serving").json()["last_failure"])

    def assert_idle(self) -> None:
        """No request kept its lease on the live version."""
        live = self.plane.slots.live
        assert live is not None
        wait_until(lambda: live.holds == 0, "all leases end")

    def metric(self, name: str, **labels: str) -> float:
        """A sample's value, as /metrics shows it."""
        text = self.client.get("/metrics").text
        label_text = ",".join(f'{key}="{value}"' for key, value in labels.items())
        wanted = f"{name}{{{label_text}}}" if labels else name
        for line in text.splitlines():
            if line.startswith(wanted + " "):
                return float(line.rsplit(" ", 1)[1])
        raise AssertionError(f"no sample {wanted} in:\n{text}")


@contextmanager
def running(
    settings: Settings,
    prepare: Callable[[InferencePlane], None] = lambda plane: None,
    *,
    token: str = "",
    name: str | None = None,
) -> Iterator[Served]:
    """The plane of `settings` behind uvicorn in a thread; `prepare` sees it before it starts; `name` is its name.

    The client sends `token`, takes any certificate, and loads no list of authorities: that takes 20 ms.
    """
    tls = tls_files("serving", settings.serving.certificate, settings.serving.key)
    listener = listen(serving_address(settings.serving), BACKLOG)
    plane = InferencePlane(settings, name)
    prepare(plane)
    server = PlaneServer(plane, tls)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    address = f"{'https' if tls else 'http'}://127.0.0.1:{listener.getsockname()[1]}"
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        wait_until(lambda: server.started, "the server starts")
        with httpx.Client(base_url=address, timeout=30.0, headers=headers, verify=False) as client:
            yield Served(plane, client)
    finally:
        server.should_exit = True
        thread.join(30)
        listener.close()
        assert not thread.is_alive(), "the server did not stop"


def image_bytes(height: int = HEIGHT, width: int = WIDTH, seed: int = 0, kind: str = "PNG") -> bytes:
    """A coarse random picture."""
    stream = io.BytesIO()
    Image.fromarray(picture(height, width, seed)).save(stream, kind)
    return stream.getvalue()


def picture(height: int = HEIGHT, width: int = WIDTH, seed: int = 0) -> np.ndarray:
    """Pixels [height, width, 3] of large random blocks."""
    blocks = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(blocks).resize((width, height), Image.Resampling.BICUBIC))


def mask_of(response: httpx.Response) -> np.ndarray:
    """The PNG of an answer as an array."""
    return np.asarray(Image.open(io.BytesIO(response.content)))
