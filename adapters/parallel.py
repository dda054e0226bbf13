"""What several processes of one round agree on; with one process nothing here does anything.

The student is not wrapped in DistributedDataParallel: a step runs several forward passes, some through `encode` and
`decode`, and back-propagates each by itself, which the wrapper's hooks on one forward and one backward do not cover.
Averaging the summed gradients once a step gives the same numbers with one exchange instead of three.
"""

from collections.abc import Iterable

import torch
from accelerate.accelerator import Accelerator
from accelerate.utils.dataclasses import DistributedType
from torch import Tensor, nn

from adapters.errors import AdapterError

REPLICATED = {DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU}
"""Ways to distribute in which every process holds the whole network."""


def check_replicated(accelerator: Accelerator) -> None:
    """Raises AdapterError for an Accelerate config that splits the network (FSDP, DeepSpeed and the like)."""
    if accelerator.distributed_type not in REPLICATED:
        raise AdapterError(
            f"round.accelerate_config: distributed_type {accelerator.distributed_type.value} splits the network over "
            "processes, which a round does not support; use NO, MULTI_GPU or MULTI_CPU"
        )


def average_gradients(accelerator: Accelerator, parameters: Iterable[nn.Parameter]) -> None:
    """Replace each gradient by its mean over the processes, in one exchange."""
    if accelerator.num_processes > 1:
        _average(accelerator, [parameter.grad for parameter in parameters if parameter.grad is not None])


def average_buffers(accelerator: Accelerator, network: nn.Module) -> None:
    """Replace the running statistics of `network` by their mean: each process saw other crops."""
    if accelerator.num_processes > 1:
        _average(accelerator, [buffer for buffer in network.buffers() if buffer.is_floating_point()])


def agree(accelerator: Accelerator, *values: float) -> tuple[float, ...]:
    """The highest of each value over the processes, so that all of them decide alike, at the same step."""
    if accelerator.num_processes == 1:
        return values
    mine = torch.tensor([values], dtype=torch.float32, device=accelerator.device)  # [1, values]
    everyone: Tensor = accelerator.gather(mine)  # [processes, values]
    return tuple(everyone.amax(dim=0).tolist())


@torch.no_grad()
def sum_over_processes(counts: Tensor) -> Tensor:
    """The sum of `counts`, of any shape, over the processes: what holds for the batch of all of them."""
    if not several_processes():
        return counts
    total = counts.clone()
    torch.distributed.all_reduce(total)
    return total


def several_processes() -> bool:
    """Whether this process trains together with others."""
    distributed = torch.distributed
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


@torch.no_grad()
def mean_count(counted: Tensor) -> Tensor:
    """Mean number of `counted` (bool, any shape) in a process, a scalar: what to divide a sum by in each process, so
    that the average over the processes is the mean over the positions of all. Where none counts it is whatever does not
    divide by 0.
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
