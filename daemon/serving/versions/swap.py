"""Bring a version to serve: verify, load into the idle slot, warm up, flip. On any failure the old one stays."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from adapters.checkpoints.checkpoint import network_of
from adapters.inference.copying import low_priority_stream
from adapters.inference.forward import ServedForward
from adapters.inference.proof import noise
from adapters.tracing import spans
from configs.serving import ServingSettings
from daemon.runtime.logs import get_logger
from daemon.runtime.memory import freeze_heap
from daemon.serving.batcher import Batcher
from daemon.serving.errors import ShadowDiffers
from daemon.serving.metrics import ServingMetrics
from daemon.serving.versions.slots import Resident, Slots
from storage.durable.digest import short
from storage.errors import CorruptCheckpoint
from storage.registry.manifest import Manifest
from storage.registry.registry import CheckpointRegistry

SAME = ("classes", "input_height", "input_width", "input_fit", "input_resample")
"""What a shadow's manifest must share with the live one: masks of the same images are compared pixel by pixel."""
DRAIN_SECONDS = 30.0
"""Longest wait for requests that still hold the version whose network is to be overwritten (seconds)."""

log = get_logger(__name__)


class Swapper:
    """Makes versions live. One thread, the follower's, calls it."""

    def __init__(
        self,
        registry: CheckpointRegistry,
        slots: Slots,
        settings: ServingSettings,
        device: torch.device,
        metrics: ServingMetrics,
        batcher: Batcher,
        own_process: bool,
    ) -> None:
        """`batcher` knows the sizes seen lately: each is warmed up before a flip.

        `own_process`: the heap of this process may be frozen before the first version serves.
        """
        self.registry, self.slots, self.settings, self.metrics = registry, slots, settings, metrics
        self._device, self._batcher = device, batcher
        self._to_freeze = own_process
        self._spare: tuple[str, ServedForward] | None = None
        self.garbage = 0
        """Loads that left garbage since somebody last set this to 0."""

    def serve(self, version: int) -> None:
        """Make `version` live; a flip without reading weights when it is still resident.

        Raises UnknownVersion, CorruptCheckpoint (hash, keys, shapes, non-finite weights or outputs) or whatever loading
        raised; the version that was live then still is.
        """
        before = self.slots.live
        if before is not None and before.version == version:
            return
        with spans.span("mfmd.swap", version=version, previous=before.version if before else None):
            weights = "resident" if self._flip(version) else "disk"
            if weights == "disk":
                self.slots.install(self._load(version))
        digest = self.slots.live.digest if self.slots.live is not None else ""
        self.metrics.swaps.labels(result="ok").inc()
        self.metrics.serve(version, digest, self.slots.versions)
        if before is not None and version < before.version:
            self.metrics.rollbacks.labels(weights=weights).inc()
        facts = {"version": version, "digest": short(digest), "previous": before and before.version}
        log.info("version_serves", **facts, weights=weights)

    def shadow(self, version: int) -> None:
        """Load `version` into the idle place, to run in the live one's shadow.

        Raises what `serve` raises, and ShadowDiffers when its masks could not be compared with the live version's.
        """
        live, manifest = self.slots.live, self.registry.manifest(version)
        if live is None or any(getattr(live.manifest, name) != getattr(manifest, name) for name in SAME):
            raise ShadowDiffers(version)
        resident = self._load(version)
        resident.shadow = True
        self.slots.install(resident)
        log.info("shadow_runs", version=version, digest=short(resident.digest), serving=live.version)

    def end_shadow(self) -> None:
        """Free the idle place if a shadow holds it."""
        if self.slots.shadow is not None:
            self._take_idle()

    def _flip(self, version: int) -> bool:
        """Flip to the idle version if it is `version`, warmed up first at sizes that came up since it was."""
        idle = self.slots.idle
        if idle is None or idle.version != version:
            return False
        with self._timed("warmup"), low_priority_stream(self._device):
            self._warm_up(idle)
        return self.slots.flip_to(version)

    def _load(self, version: int) -> Resident:
        try:
            return self._read(version)
        finally:
            self.garbage += 1

    def _read(self, version: int) -> Resident:
        """Read `version` from disk. The idle version stays for rollbacks until the hashes are known to be right."""
        manifest = self.registry.manifest(version)
        with self._timed("verify"):
            self.registry.verify(version)
        with self._timed("drain"):
            self._take_idle()
        with low_priority_stream(self._device):
            with self._timed("load"):
                forward = self._forward_for(manifest)
                forward.load(*self.registry.weight_files(version))
            with self._timed("warmup"):
                resident = Resident(version, manifest, forward)
                self._warm_up(resident)
        self._spare = None
        if self._to_freeze:
            freeze_heap()
            self._to_freeze = False
        return resident

    def _take_idle(self) -> None:
        """Free the idle place; keep its network, so that swaps allocate nothing."""
        retired = self.slots.retire_idle(DRAIN_SECONDS)
        if retired is not None:
            self._spare = (_architecture(retired.manifest), retired.forward)

    def _forward_for(self, manifest: Manifest) -> ServedForward:
        """Return the spare network if it fits `manifest`, else a new one, which shares the live one's base if it can.

        A spare with another base does not fit: its memory may be the live version's.
        """
        architecture, live = _architecture(manifest), self.slots.live
        if self._spare is None or self._spare[0] != architecture:
            self._spare = None  # the old one is freed before the new one is made
            forward = ServedForward(network_of(manifest), self.settings, self._device)
            if manifest.base is not None and live is not None and _architecture(live.manifest) == architecture:
                forward.share_base(live.forward, self.registry.bases.path(manifest.base.sha256))
            self._spare = (architecture, forward)
        return self._spare[1]

    def _warm_up(self, resident: Resident) -> None:
        """Run a version once at every served size that is new to it; CorruptCheckpoint if an output is not finite."""
        full = resident.input_size
        lately = [size for size in self._batcher.served_sizes if size[0] <= full[0] and size[1] <= full[1]]
        for size in dict.fromkeys([full, *lately]):
            if size in resident.warmed:
                continue
            with torch.inference_mode():
                logits = resident.forward.warm_up(noise(size).to(self._device))
            if not bool(torch.isfinite(logits).all()):
                raise CorruptCheckpoint(
                    f"version {resident.version}: outputs at {size[0]}x{size[1]} are not finite; "
                    "roll back, or train with a lower learning rate"
                )
            resident.warmed.add(size)

    @contextmanager
    def _timed(self, phase: str) -> Iterator[None]:
        started = time.perf_counter()
        with spans.span(f"mfmd.swap.{phase}"):
            yield
        self.metrics.swap_seconds.labels(phase=phase).observe(time.perf_counter() - started)


def _architecture(manifest: Manifest) -> str:
    """Return what must be equal for one network object to take the weights of another version."""
    relevant = {key: value for key, value in manifest.network.items() if key != "pretrained"}
    return f"{sorted(relevant.items())} {len(manifest.classes)} {manifest.base.sha256 if manifest.base else ''}"
