"""Options of a round's networks that keep the networks the same: `round.*` for layout, compilation and memory.

None of them changes the names, shapes or meaning of weights: a candidate is the plain network.
"""

from collections.abc import Iterable

import torch
from accelerate.accelerator import Accelerator
from torch import Tensor, nn

from adapters.networks.activation_checkpointing import checkpoint_encoder
from adapters.networks.network import SegmentationNetwork
from configs.round import RoundSettings


def apply_options(network: SegmentationNetwork, settings: RoundSettings, accelerator: Accelerator) -> None:
    """Prepare a student before its teacher is copied from it: BatchNorm over processes, layout, checkpointing.

    torch synchronises BatchNorm on GPUs only; parameters stay the same objects, under the same names.
    """
    if settings.advanced.sync_batch_norm and accelerator.num_processes > 1 and accelerator.device.type == "cuda":
        nn.SyncBatchNorm.convert_sync_batchnorm(network)
    layout = torch.channels_last if settings.advanced.channels_last else torch.contiguous_format
    network.to(memory_format=layout)  # type: ignore[call-overload]  # torch's stubs lack this overload
    if settings.advanced.gradient_checkpointing:
        checkpoint_encoder(network)


def compile_networks(modules: Iterable[nn.Module]) -> None:
    """Compile encoder and decoder of every segmentation network among `modules`, in place, at their first use."""
    for module in modules:
        if isinstance(module, SegmentationNetwork):
            module.encoder.compile()
            module.decoder.compile()


def laid_out(frames: Tensor, settings: RoundSettings) -> Tensor:
    """Lay frames [B, H, W, 3] out in the memory order of images as the network reads them.

    Frames come from storage with channels last in memory, and so do the images made from them.
    """
    if settings.advanced.channels_last:
        return frames
    return frames.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)  # planes in memory, the same shape
