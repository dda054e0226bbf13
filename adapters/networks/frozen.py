"""The base of a network: what no training changes, so that versions share it instead of holding it.

It is defined right after the network was built, because recipes freeze more for a while.
"""

from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

LEAST_SHARE = 0.5
"""Least share of the base in the bytes of a network (ours): a second file for a mask token saves nothing."""


@dataclass(frozen=True, slots=True)
class StoredBase:
    """The base of a network that was loaded from a registry: its attribute `base`."""

    path: Path
    """Its safetensors file."""
    digest: str
    """Hex SHA-256 of that file."""
    names: frozenset[str]
    """Its tensors, by their names in the network's state dict."""

    def below(self, prefix: str) -> "StoredBase":
        """Return the part whose names begin with `prefix`."""
        return replace(self, names=frozenset(name for name in self.names if name.startswith(prefix)))


def base_names(network: nn.Module) -> frozenset[str]:
    """Return the names in the state dict of `network`, as it was just built, that are its base; empty for most.

    These are parameters without gradient, and buffers of modules that hold such parameters and no others. Statistics of
    BatchNorm are not among them, because rounds estimate them anew. A base of less than `LEAST_SHARE` is none.
    """
    state = network.state_dict()
    found = frozenset(_frozen(network) & state.keys())
    size = sum(state[name].nbytes for name in found)
    return found if size >= LEAST_SHARE * sum(tensor.nbytes for tensor in state.values()) else frozenset()


def _frozen(network: nn.Module) -> set[str]:
    names = {name for name, value in network.named_parameters(remove_duplicate=False) if not value.requires_grad}
    for prefix, module in network.named_modules(remove_duplicate=False):
        inside = list(module.parameters())
        if inside and not isinstance(module, _BatchNorm) and not any(value.requires_grad for value in inside):
            start = f"{prefix}." if prefix else ""
            names |= {start + name for name, _ in module.named_buffers(recurse=False)}
    return names
