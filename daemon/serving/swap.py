"""Bring a version to serve: verify, load into the idle place, warm up, flip. On any failure the old one serves on."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch

from adapters.checkpoints.checkpoint import load_weights, network_of
from adapters.inference import logits_of
from adapters.networks.network import SegmentationNetwork
from adapters.networks.pixels import normalise
from daemon.logs import get_logger
from daemon.serving.metrics import ServingMetrics
from daemon.serving.slots import Resident, Slots
from storage.errors import CorruptCheckpoint
from storage.manifest import Manifest
from storage.registry import CheckpointRegistry

DRAIN_SECONDS = 30.0
"""Longest wait for requests that still hold the version whose network is to be overwritten (seconds)."""

log = get_logger(__name__)


class Swapper:
    """Makes versions live. One thread, the follower's, calls it."""

    def __init__(
        self,
        registry: CheckpointRegistry,
        slots: Slots,
        device: torch.device,
        metrics: ServingMetrics,
        served_sizes: Callable[[], Sequence[tuple[int, int]]],
    ) -> None:
        """`served_sizes` gives the network input sizes (height, width) seen lately: each is warmed up before a flip."""
        self._registry = registry
        self._slots = slots
        self._device = device
        self._metrics = metrics
        self._served_sizes = served_sizes
        self._spare: tuple[str, SegmentationNetwork] | None = None

    def serve(self, version: int) -> None:
        """Make `version` live; a flip without reading weights when it is still resident.

        Raises UnknownVersion, CorruptCheckpoint (hash, keys, shapes, non-finite weights or outputs) or whatever loading
        raised; the version that was live then still is.
        """
        before = self._slots.live
        if before is not None and before.version == version:
            return
        resident = self._slots.flip_to(version)
        if not resident:
            self._load(version)
        self._announce(version, before, "resident" if resident else "disk")

    def _load(self, version: int) -> None:
        """Read `version` from disk. The resident version stays for rollbacks until the hashes are known to be right."""
        manifest = self._registry.manifest(version)
        with self._timed("verify"):
            self._registry.verify(version)
        with self._timed("drain"):
            self._take_idle()
        with self._timed("load"):
            network = self._network_for(manifest)
            load_weights(network, self._registry.weights_path(version))
        with self._timed("warmup"):
            self._warm_up(version, manifest, network)
        self._slots.install(Resident(version, manifest, network))
        self._spare = None

    def _take_idle(self) -> None:
        """Free the idle place; keep its network, so that swaps allocate nothing."""
        retired = self._slots.retire_idle(DRAIN_SECONDS)
        if retired is not None:
            self._spare = (_architecture(retired.manifest), retired.network)

    def _network_for(self, manifest: Manifest) -> SegmentationNetwork:
        """The spare network if it has the architecture of `manifest`, else a new one."""
        architecture = _architecture(manifest)
        if self._spare is None or self._spare[0] != architecture:
            self._spare = None  # the old one is freed before the new one is made
            self._spare = (architecture, network_of(manifest).to(self._device).eval())
        return self._spare[1]

    def _warm_up(self, version: int, manifest: Manifest, network: SegmentationNetwork) -> None:
        """Run `network` once at every served size; CorruptCheckpoint if an output is not finite."""
        full = (manifest.input_height, manifest.input_width)
        lately = [size for size in self._served_sizes() if size[0] <= full[0] and size[1] <= full[1]]
        for height, width in dict.fromkeys([full, *lately]):
            noise = np.random.default_rng(0).integers(0, 256, (1, height, width, 3), dtype=np.uint8)
            with torch.inference_mode():
                logits = logits_of(network, normalise(torch.from_numpy(noise).to(self._device)))
            if not bool(torch.isfinite(logits).all()):
                raise CorruptCheckpoint(
                    f"version {version}: outputs at {height}x{width} are not finite; "
                    "roll back, or train again with a lower learning rate"
                )

    def _announce(self, version: int, before: Resident | None, weights: str) -> None:
        live = self._slots.live
        self._metrics.swaps.labels(result="ok").inc()
        self._metrics.serve(version, live.digest if live is not None else "")
        if before is not None and version < before.version:
            self._metrics.rollbacks.labels(weights=weights).inc()
        log.info("version_serves", version=version, previous=before and before.version, weights=weights)

    @contextmanager
    def _timed(self, phase: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self._metrics.swap_seconds.labels(phase=phase).observe(time.perf_counter() - started)


def _architecture(manifest: Manifest) -> str:
    """What must be equal for one network object to take the weights of another version."""
    relevant = {key: value for key, value in manifest.network.items() if key != "pretrained"}
    return f"{sorted(relevant.items())} {len(manifest.classes)}"
