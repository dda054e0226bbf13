"""Weights in two files: the base, which versions share, and the rest, which names the base by its digest.

A network without a base is one file. So is one whose frozen tensors are not those of the stored base any more: no
candidate is ever stored as something else than what was judged.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from adapters.checkpoints.checkpoint import save_weights, stored_form
from adapters.networks.frozen import StoredBase
from storage.durable.digest import digest_of
from storage.registry.bases import KEY, base_named_in

log = logging.getLogger(__name__)


class SavedWeights(NamedTuple):
    """Files for `CheckpointRegistry.add`."""

    weights: Path
    base: Path | None
    """None: `weights` holds everything."""


def save_split(network: nn.Module, base: frozenset[str], folder: Path) -> SavedWeights:
    """Write the tensors named in `base` (`base_names`) and the others of `network` to two files in `folder`.

    One file when `base` is empty.
    """
    files = SavedWeights(folder / "model.safetensors", folder / "base.safetensors" if base else None)
    if files.base is None:
        save_weights(network, files.weights)
        return files
    state = network.state_dict()
    save_file(stored_form({name: state[name] for name in base}), files.base)
    _save_rest(state, base, digest_of(files.base), files.weights)
    return files


def save_beside_base(module: nn.Module, path: Path) -> None:
    """Write the state dict of `module` to `path`, without the stored base while that still holds.

    The base is that of a network, or the part of it that a term of training has in a copy (`StoredBase`).
    """
    base = _base_of(module)
    state = module.state_dict()
    if base is None or not _holds(base, state):
        save_weights(module, path)
    else:
        _save_rest(state, base.names, base.digest, path)


def load_beside_base(module: nn.Module, path: Path) -> None:
    """Copy what `save_beside_base` wrote into `module`, which holds the base itself already.

    Raises ValueError when the file names another base than that of `module`.
    """
    tensors, named = load_file(path), base_named_in(path)
    base = _base_of(module)
    if named is not None:
        if base is None or base.digest != named:
            raise ValueError(f"{path.name} belongs to base {named}, the network to {base.digest if base else 'none'}")
        state = module.state_dict()
        tensors |= {name: state[name] for name in base.names}
    module.load_state_dict(tensors)


def _base_of(module: nn.Module) -> StoredBase | None:
    found = getattr(module, "base", None)
    return found if isinstance(found, StoredBase) else None


def _save_rest(state: Mapping[str, Tensor], base: frozenset[str], digest: str, path: Path) -> None:
    rest = {name: tensor for name, tensor in state.items() if name not in base}
    save_file(stored_form(rest), path, metadata={KEY: digest})


def _holds(base: StoredBase, state: Mapping[str, Tensor]) -> bool:
    """Return whether `state` has the base as it is stored, bit for bit; say why not in the log."""
    try:
        with safe_open(base.path, framework="pt") as file:
            changed = [name for name in sorted(base.names) if not _equal(file.get_tensor(name), state.get(name))]
    except (OSError, SafetensorError) as error:
        log.warning("%s: cannot be read (%s): all weights are stored", base.path, error)
        return False
    if changed:
        told = "%s: %d frozen tensors are not as stored there (%s): all weights are stored"
        log.warning(told, base.path, len(changed), changed[0])
    return not changed


def _equal(stored: Tensor, found: Tensor | None) -> bool:
    return found is not None and stored.dtype == found.dtype and torch.equal(stored, found.cpu())
