"""Let several processes of one round agree; with one process nothing here has an effect.

The student is not wrapped in DistributedDataParallel. A step runs several forward passes, some through `encode` and
`decode`, and back-propagates each by itself. The wrapper's hooks on one forward and one backward do not cover that.
Averaging the summed gradients once a step gives the same numbers with one exchange instead of three.
"""

from collections.abc import Iterable
from functools import lru_cache

import torch
from accelerate.accelerator import Accelerator
from accelerate.utils.dataclasses import DistributedType
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from adapters.errors import AdapterError
from adapters.networks.batch_norm import batch_norm_layers
from adapters.networks.network import SegmentationNetwork

REPLICATED = {DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU}
"""Ways to distribute in which every process holds the whole network."""


def check_replicated(accelerator: Accelerator) -> None:
    """Raise AdapterError for an Accelerate config that splits the network (FSDP, DeepSpeed and the like)."""
    if accelerator.distributed_type not in REPLICATED:
        raise AdapterError(
            f"round.advanced.accelerate_config: distributed_type {accelerator.distributed_type.value} splits the "
            "network over processes, which a round does not support; use NO, MULTI_GPU or MULTI_CPU"
        )


def average_gradients(accelerator: Accelerator, parameters: Iterable[nn.Parameter]) -> None:
    """Replace each gradient by its mean over the processes, in one exchange."""
    if accelerator.num_processes > 1:
        _average(accelerator, [parameter.grad for parameter in parameters if parameter.grad is not None])


@torch.no_grad()
def average_buffers(accelerator: Accelerator, network: nn.Module) -> None:
    """Replace the running statistics of `network` by those of all processes together: each saw other crops.

    Everything is averaged but the base, which is equal everywhere and must stay so to the last bit. A second exchange
    adds the distance between the processes' means to the variances of BatchNorm: mean(variance + mean^2) - mean(mean)^2
    in one exchange would lose small variances to rounding.
    """
    if accelerator.num_processes == 1:
        return
    pairs = [
        (layer.running_mean, layer.running_var)
        for layer in batch_norm_layers(network)
        if layer.running_mean is not None and layer.running_var is not None
    ]
    own = [mean.clone() for mean, _ in pairs]
    base = network.base.names if isinstance(network, SegmentationNetwork) and network.base is not None else frozenset()
    buffers = (buffer for name, buffer in network.named_buffers() if name not in base)
    _average(accelerator, [buffer for buffer in buffers if buffer.is_floating_point()])
    spread = [(mine - mean).square() for mine, (mean, _) in zip(own, pairs, strict=True)]
    _average(accelerator, spread)
    for between, (_, variance) in zip(spread, pairs, strict=True):
        variance.add_(between)


def agree(accelerator: Accelerator, *values: float) -> tuple[float, ...]:
    """Return the highest of each value over the processes, so that all of them decide alike, at the same step.

    The values are exchanged from CPU to CPU: over the device, every step would wait until its kernels have run.
    """
    if accelerator.num_processes == 1:
        return values
    highest = torch.tensor(values, dtype=torch.float64)
    torch.distributed.all_reduce(
        highest, torch.distributed.ReduceOp.MAX, group=_cpu_group(torch.distributed.group.WORLD)
    )
    return tuple(highest.tolist())


@lru_cache(maxsize=1)
def _cpu_group(everyone: ProcessGroup) -> ProcessGroup:
    """Return `everyone` as a group that exchanges tensors of the CPU; all processes must call it at the same point."""
    if torch.distributed.get_backend(everyone) == "gloo":
        return everyone
    group: ProcessGroup = torch.distributed.new_group(backend="gloo")
    return group


@torch.no_grad()
def sum_over_processes(counts: Tensor) -> Tensor:
    """Return the sum of `counts`, of any shape, over the processes: the counts of the whole batch."""
    if not several_processes():
        return counts
    total = counts.clone()
    torch.distributed.all_reduce(total)
    return total


def several_processes() -> bool:
    """Return whether this process trains together with others."""
    distributed = torch.distributed
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


@torch.no_grad()
def mean_count(counted: Tensor) -> Tensor:
    """Return the mean number of `counted` (bool, any shape) per process, a scalar.

    Divide a sum by it in each process, and the average over the processes is the mean over the positions of all. When
    nothing counts, the result is a value that does not divide by 0.
    """
    processes = torch.distributed.get_world_size() if several_processes() else 1
    return (sum_over_processes(counted.sum().float()) / processes).clamp(min=1.0 / processes)


@torch.no_grad()
def _average(accelerator: Accelerator, tensors: list[Tensor]) -> None:
    if not tensors:
        return
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    mean: Tensor = accelerator.reduce(flat, reduction="mean")
    parts = mean.split([tensor.numel() for tensor in tensors])
    torch._foreach_copy_(tensors, [part.view_as(tensor) for part, tensor in zip(parts, tensors, strict=True)])
