"""Weights on disk and in the registry: plain safetensors of the network's state dict, strictly checked."""

import time
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Literal

import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from adapters.errors import NetworkMismatch
from adapters.networks.build import build_network
from adapters.networks.network import SegmentationNetwork
from adapters.networks.own import changed_code, renamed_weights
from adapters.networks.source_digest import warn_of_changes
from adapters.networks.weight_files import damage_of, weight_problems
from configs.network import Architecture
from configs.settings import Settings
from storage.durable.record import USE_NEWER
from storage.errors import CorruptCheckpoint, NewerVersion
from storage.registry.manifest import Manifest
from storage.registry.provenance import code_digest, library_versions, settings_hash
from storage.registry.registry import CheckpointRegistry


def save_weights(network: nn.Module, path: Path) -> None:
    """Write the network's state dict to `path` as safetensors, without the Rebuilder."""
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in network.state_dict().items()}
    save_file(tensors, path)


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file, by name. Raises CorruptCheckpoint when it cannot be read."""
    if damage := damage_of(path):
        raise CorruptCheckpoint(f"{path}: {damage}")
    return load_file(path)


def load_weights(network: SegmentationNetwork, path: Path, *, foreign: bool = False) -> None:
    """Copy the weights in `path` into `network`; nothing is copied unless every tensor fits.

    `foreign`: names may be those of the module that the author of an own network wrote. Raises CorruptCheckpoint,
    naming tensors, when names, shapes or types differ or a value is not finite.
    """
    tensors = read_weights(path)
    if foreign:
        tensors = renamed_weights(network, tensors)
    problems = weight_problems(network.state_dict(), tensors)
    if problems:
        raise CorruptCheckpoint(f"{path}: {'; '.join(problems)}{changed_code(network)}")
    network.load_state_dict(tensors)


def load_version(
    registry: CheckpointRegistry, version: int, device: torch.device
) -> tuple[SegmentationNetwork, Manifest]:
    """Load the network of a registered version, verified, on `device`, in eval mode, and its manifest.

    Raises UnknownVersion or CorruptCheckpoint.
    """
    registry.verify(version)
    manifest = registry.manifest(version)
    network = network_of(manifest)
    try:
        load_weights(network, registry.weights_path(version))
    except CorruptCheckpoint as error:
        raise CorruptCheckpoint(f"version {version}: {error}{_other_libraries(manifest)}") from error
    return network.to(device).eval(), manifest


def network_of(manifest: Manifest) -> SegmentationNetwork:
    """Build the architecture that `manifest` records, with untrained weights.

    Raises NewerVersion when a newer mfmd wrote it, CorruptCheckpoint for other damage, AdapterError when it cannot be
    built.
    """
    try:
        settings = Architecture.model_validate(manifest.network)
    except ValidationError as error:
        problem = error.errors()[0]
        later = problem["type"] in ("extra_forbidden", "literal_error")  # a field or a network that came later
        field = ".".join(str(part) for part in ("network", *problem["loc"]))
        kind, remedy = (NewerVersion, f"; {USE_NEWER}") if later else (CorruptCheckpoint, "")
        raise kind(f"manifest of version {manifest.version}: {field}: {problem['msg']}{remedy}") from error
    settings = settings.model_copy(update={"pretrained": None})
    try:
        network = build_network(settings, len(manifest.classes))
    except NetworkMismatch as error:  # a package that is missing or has changed since
        raise NetworkMismatch(f"version {manifest.version}: {error}") from error
    warn_of_changes(network, manifest)
    return network


def make_manifest(
    settings: Settings,
    *,
    origin: Literal["pretrain", "import"],
    network: Architecture | None = None,
    network_code: str = "",
    seed: int | None = None,
    scores: Mapping[str, float] | None = None,
) -> Manifest:
    """Build the manifest of weights made under `settings` for `CheckpointRegistry.add`, which numbers it.

    `network` replaces `settings.network` (imports). `network` does not record where encoder weights first came from:
    the version holds all weights and must load where that directory does not exist. `network_code` is the network's
    `source_digest`.
    """
    values = settings.model_dump(mode="json")
    architecture = (network or settings.network.architecture()).model_copy(update={"pretrained": None})
    return Manifest(
        origin=origin,
        created=time.time(),
        network=architecture.model_dump(mode="json"),
        network_code=network_code,
        classes=tuple(entry.model_dump(mode="json") for entry in settings.classes),
        input_height=settings.buffer.height,
        input_width=settings.buffer.width,
        input_fit=settings.buffer.advanced.fit,
        input_resample=settings.buffer.advanced.resample,
        seed=seed,
        config_hash=settings_hash(values),
        settings=values,
        libraries=library_versions(),
        code=code_digest(),
        scores=dict(scores or {}),
    )


def _other_libraries(manifest: Manifest) -> str:
    """Return a hint for weights that verify but do not fit: transformers sometimes renames modules."""
    made, here = manifest.libraries.get("transformers"), metadata.version("transformers")
    return f" (made with transformers {made}, this is {here})" if made != here else ""
