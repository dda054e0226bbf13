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
from adapters.networks.frozen import StoredBase
from adapters.networks.network import SegmentationNetwork
from adapters.networks.own import changed_code, renamed_weights
from adapters.networks.source_digest import warn_of_changes
from adapters.networks.weight_files import damage_of, tensor_names, weight_problems
from configs.network import Architecture
from configs.settings import Settings
from storage.durable.record import USE_NEWER
from storage.errors import CorruptCheckpoint, NewerVersion
from storage.registry.bases import base_named_in
from storage.registry.manifest import Manifest
from storage.registry.provenance import code_digest, library_versions, settings_hash
from storage.registry.registry import CheckpointRegistry


def save_weights(network: nn.Module, path: Path) -> None:
    """Write the network's state dict to `path` as safetensors, without the Rebuilder."""
    save_file(stored_form(network.state_dict()), path)


def stored_form(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return copies of the tensors of a state dict as files hold them: on the CPU, contiguous, sharing no memory."""
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}


def read_weights(path: Path, base: Path | None = None) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file, and of its base, by name.

    Raises CorruptCheckpoint when one cannot be read, when both hold the same tensor, or when the base is missing here.
    """
    tensors = dict[str, Tensor]()
    for file in (path, base) if base is not None else (path,):
        if damage := damage_of(file):
            raise CorruptCheckpoint(f"{file}: {damage}")
        read = load_file(file)
        if twice := sorted(tensors.keys() & read.keys()):
            raise CorruptCheckpoint(f"{file}: holds {twice[0]}, which is in {path} too")
        tensors |= read
    if base is None and (named := base_named_in(path)) is not None:
        raise CorruptCheckpoint(
            f"{path}: holds only what is not in base {named}, and no network alone; `mfmd export` of that version "
            "gives all of it"
        )
    return tensors


def load_weights(network: SegmentationNetwork, path: Path, base: Path | None = None, *, foreign: bool = False) -> None:
    """Copy the weights in `path`, and in its `base`, into `network`; nothing is copied unless every tensor fits.

    `foreign`: names may be those of the module that the author of an own network wrote. Raises CorruptCheckpoint,
    naming tensors, when names, shapes or types differ or a value is not finite.
    """
    tensors = read_weights(path, base)
    if foreign:
        tensors = renamed_weights(network, tensors)
    problems = weight_problems(network.state_dict(), tensors)
    if problems:
        together = f" with base {base.name}" if base is not None else ""
        raise CorruptCheckpoint(f"{path}{together}: {'; '.join(problems)}{changed_code(network)}")
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
        load_weights(network, *registry.weight_files(version))
    except CorruptCheckpoint as error:
        raise CorruptCheckpoint(f"version {version}: {error}{_other_libraries(manifest)}") from error
    if manifest.base is not None:
        path = registry.bases.path(manifest.base.sha256)
        network.base = StoredBase(path, manifest.base.sha256, tensor_names(path))
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
