"""BatchNorm over the batches of all processes: what one process with the whole batch would normalise with.

On GPUs torch brings it (`torch.nn.SyncBatchNorm`); on the CPU it has none, so here is one in plain operations. Names in
the state dict stay those of an ordinary BatchNorm, and in eval mode nothing is exchanged.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class SyncedBatchNorm(_BatchNorm):
    """BatchNorm over [B, C, ...] whose statistics in train mode are those of all processes; batches of equal shape."""

    def forward(self, maps: Tensor) -> Tensor:
        """Normalise `maps`: one exchange for the mean and one for the variance, both differentiable."""
        if not self.training:
            return super().forward(maps)
        reduced = [0, *range(2, maps.ndim)]
        shape = (1, -1, *[1] * (maps.ndim - 2))
        values = maps.float()  # under autocast maps come in half precision, too coarse for sums
        mean = _mean_over_processes(values.mean(dim=reduced))  # [C]
        centred = values - mean.view(shape)
        variance = _mean_over_processes(centred.square().mean(dim=reduced))  # [C]; two passes, as exact as torch's own
        if self.track_running_stats:
            pixels = maps.numel() // maps.shape[1] * torch.distributed.get_world_size()
            self._record(mean.detach(), variance.detach() * (pixels / max(pixels - 1, 1)))
        scale = torch.rsqrt(variance + self.eps)
        scale = scale if self.weight is None else scale * self.weight
        normalised = centred * scale.view(shape)
        return (normalised if self.bias is None else normalised + self.bias.view(shape)).to(maps.dtype)

    @torch.no_grad()
    def _record(self, mean: Tensor, variance: Tensor) -> None:
        """Advance the running statistics; momentum none is a plain mean over the batches."""
        if self.running_mean is None or self.running_var is None:
            return
        share = self.momentum
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            share = share if share is not None else 1.0 / float(self.num_batches_tracked)
        assert share is not None
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(variance, share)

    def _check_input_dim(self, maps: Tensor) -> None:
        if maps.ndim < 2:
            raise ValueError(f"BatchNorm needs [B, C, ...], not {maps.ndim} dimensions")


def synchronise_batch_norm(network: nn.Module, device: torch.device) -> None:
    """Let every BatchNorm layer of `network` normalise over all processes; parameters stay the same objects.

    `network` itself is no BatchNorm layer. Layers that do so already stay.
    """
    for parent in [*network.modules()]:
        for name, layer in [*parent.named_children()]:
            if isinstance(layer, _BatchNorm) and not isinstance(layer, SyncedBatchNorm | nn.SyncBatchNorm):
                setattr(parent, name, _synced(layer, device))


def _synced(layer: _BatchNorm, device: torch.device) -> nn.Module:
    if device.type == "cuda":
        converted: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(layer)
        return converted
    synced = SyncedBatchNorm(layer.num_features, layer.eps, layer.momentum, layer.affine, layer.track_running_stats)
    synced._parameters, synced._buffers = layer._parameters, layer._buffers  # the optimizer may hold them already
    return synced.train(layer.training)


def _mean_over_processes(values: Tensor) -> Tensor:
    total: Tensor = _SumOverProcesses.apply(values)  # type: ignore[no-untyped-call]
    return total / torch.distributed.get_world_size()


class _SumOverProcesses(torch.autograd.Function):
    """All-reduce; the gradient of a sum that every process reads is the sum of their gradients."""

    @staticmethod
    def forward(_context: Any, values: Tensor) -> Tensor:
        total = values.contiguous().clone()
        torch.distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(_context: Any, gradient: Tensor) -> Tensor:
        total = gradient.contiguous().clone()
        torch.distributed.all_reduce(total)
        return total
