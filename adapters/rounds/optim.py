"""AdamW with parameter groups, linear warm-up and polynomial decay (as DAFormer, arXiv 2111.14887)."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from adapters.errors import NetworkMismatch
from adapters.networks.encoders.layered import LayeredEncoder
from adapters.networks.network import SegmentationNetwork
from configs.network import OptimSettings

WARMUP_FLOOR = 1e-6
"""Share of the rate at the first warm-up step, as in the DAFormer framework; exactly 0 would waste the step."""


def build_optimizer(
    network: SegmentationNetwork,
    settings: OptimSettings,
    *,
    rebuilder: nn.Module | None = None,
    rebuilder_lr: float = 0.0,
    added: Mapping[str, nn.Module] | None = None,
) -> torch.optim.AdamW:
    """Build AdamW: encoder at `learning_rate`, decoder `head_multiplier` times faster, Rebuilder at `rebuilder_lr`.

    Modules `added` to the training, by name, learn as the network does: what lies in an `encoder` at the encoder's
    rates, layer by layer where it has layers, the rest at the decoder's. Vectors and scalars (norm layers, biases) get
    no weight decay. Raises NetworkMismatch when the network's encoder has no layers for `layer_decay`.
    """
    rate, decay = settings.learning_rate, settings.advanced.weight_decay
    if settings.advanced.layer_decay < 1.0 and not _layers(network.encoder):
        raise NetworkMismatch(
            f"optim.advanced.layer_decay is {settings.advanced.layer_decay}, but this network's encoder has no layers "
            "in order: set it to 1, or take a DINOv2 or DINOv3 encoder (network.encoder)"
        )
    groups = [
        *_encoder_groups("", network.encoder, settings),
        *_groups("decoder", network.decoder.parameters(), rate * settings.head_multiplier, decay),
    ]
    if rebuilder is not None:
        groups += _groups("rebuilder", rebuilder.parameters(), rebuilder_lr, decay)
    for name, module in (added or {}).items():
        inner = getattr(module, "encoder", None)
        if isinstance(inner, nn.Module):
            groups += _encoder_groups(f"{name}_", inner, settings)
        outer = (value for path, value in module.named_parameters() if not path.startswith("encoder."))
        groups += _groups(name, outer, rate * settings.head_multiplier, decay)
    return torch.optim.AdamW(groups, fused=True)


def _layers(encoder: nn.Module) -> list[nn.Module]:
    """Return the parts of `encoder` in order, empty when it does not name them."""
    return list(encoder.layers()) if isinstance(encoder, LayeredEncoder) else []


def _encoder_groups(prefix: str, encoder: nn.Module, settings: OptimSettings) -> list[dict[str, Any]]:
    """Return an encoder's groups: its layers, first ones slower; an adapter around it at the decoder's rate."""
    rate, decay, layer_decay = settings.learning_rate, settings.advanced.weight_decay, settings.advanced.layer_decay
    layers = _layers(encoder) if layer_decay < 1.0 else []
    around = encoder.added() if isinstance(encoder, LayeredEncoder) else ()
    adapter = [parameter for part in around for parameter in part.parameters()]
    groups = _groups(f"{prefix}adapter", adapter, rate * settings.head_multiplier, decay)
    taken = {id(parameter) for parameter in adapter}
    for index, layer in enumerate(layers):
        slower = layer_decay ** (len(layers) - 1 - index)
        groups += _groups(f"{prefix}encoder_layer_{index}", layer.parameters(), rate * slower, decay)
        taken |= {id(parameter) for parameter in layer.parameters()}
    rest = [parameter for parameter in encoder.parameters() if id(parameter) not in taken]
    return [*_groups(f"{prefix}encoder", rest, rate, decay), *groups]


def _groups(name: str, parameters: Iterable[nn.Parameter], rate: float, decay: float) -> list[dict[str, Any]]:
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    parts = {
        name: ([parameter for parameter in trained if parameter.ndim > 1], decay),
        f"{name}_no_decay": ([parameter for parameter in trained if parameter.ndim <= 1], 0.0),
    }
    return [
        {"name": part, "params": members, "lr": rate, "initial_lr": rate, "weight_decay": decay}
        for part, (members, decay) in parts.items()
        if members
    ]


def learning_rate_factor(step: int, steps: int, settings: OptimSettings, time_used: float = 0.0) -> float:
    """Return the factor on every learning rate at `step` (from 0) of `steps`, 0-1: warm-up times decay.

    `time_used` is the used share of a time budget (0-1). When time will end the run before its steps do, the decay
    follows the clock over the second half, so a shortened run still ends with small steps. Otherwise time has no
    influence, and runs repeat.
    """
    left = min(1.0 - min(step, steps) / steps, 2.0 * (1.0 - min(time_used, 1.0)))
    decay = float(left**settings.advanced.power)
    warmup = min(settings.advanced.warmup_steps, steps)
    return decay if step >= warmup else decay * (WARMUP_FLOOR + (1.0 - WARMUP_FLOOR) * step / warmup)


def set_learning_rates(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set each group's rate to `factor` times its initial one."""
    for group in optimizer.param_groups:
        group["lr"] = factor * group["initial_lr"]
