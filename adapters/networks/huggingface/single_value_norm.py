"""BatchNorm for imported heads that pool the image to one value: a batch of one cannot be normalised there."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SingleValueBatchNorm(nn.BatchNorm2d):
    """BatchNorm2d that uses its running statistics when a channel has only one value to learn from.

    torch refuses such a batch, so the pooled branches of UPerNet and DeepLab could not train on one image at a time.
    """

    def forward(self, maps: Tensor) -> Tensor:
        """Normalise `maps` `[B, C, H, W]`."""
        if self.training and maps.shape[0] * maps.shape[2] * maps.shape[3] == 1:
            return F.batch_norm(maps, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
        return super().forward(maps)


@torch.no_grad()
def allow_single_values(module: nn.Module) -> None:
    """Replace each BatchNorm2d below `module` by one that accepts single values; weights and statistics stay."""
    for parent in list(module.modules()):
        for name, layer in list(parent.named_children()):
            if type(layer) is nn.BatchNorm2d:
                setattr(parent, name, _same(layer))


def _same(layer: nn.BatchNorm2d) -> SingleValueBatchNorm:
    twin = SingleValueBatchNorm(layer.num_features, layer.eps, layer.momentum, layer.affine, layer.track_running_stats)
    for name, parameter in layer.named_parameters():
        twin.register_parameter(name, parameter)
    for name, buffer in layer.named_buffers():
        twin.register_buffer(name, buffer)
    return twin.train(layer.training)
