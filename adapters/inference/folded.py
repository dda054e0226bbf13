"""BatchNorm folded into the convolution before it: at test time both are linear, so one does for two.

With a channel's scale s = gamma / sqrt(var + eps), norm(conv(x)) = (s W) * x + (beta + s (b - mean)): Ioffe and Szegedy
2015 (arXiv 1502.03167), section 3.1. Answers stay the same but for rounding.
"""

import copy
import weakref
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from adapters.inference.copying import chunks

COMPARED_SIDE = 64
"""Side of the part of an image on which forms are compared (pixels): what differs shows on any, and every swap pays."""
CLOSE = 1e-3
"""Largest difference of logits, as a share of the largest logit, at which two forms count as the same network."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A convolution and the BatchNorm that alone reads it, in the network that versions are copied into."""

    convolution: nn.Conv2d
    norm: nn.BatchNorm2d
    bias: nn.Parameter
    """Bias of the convolution in the folded form; the weight is shared."""

    @torch.no_grad()
    def fold(self) -> None:
        """Scale the weight where it lies and set the bias; the network itself is wrong from now on."""
        mean, var, bias = self.norm.running_mean, self.norm.running_var, self.convolution.bias
        assert mean is not None and var is not None
        scale = torch.rsqrt(var + self.norm.eps) * (1.0 if self.norm.weight is None else self.norm.weight)  # [C]
        for weight, own in chunks(self.convolution.weight, scale.view(-1, 1, 1, 1)):
            weight.mul_(own)
        shift = (0.0 if bias is None else bias) - mean
        self.bias.copy_(scale * shift + (0.0 if self.norm.bias is None else self.norm.bias))


class Folded:
    """The folded form of a network. Weights are shared: versions are copied into the network, then folded in place."""

    def __init__(self, network: nn.Module) -> None:
        """`network` in eval mode, on its device."""
        self._network = network
        self._pairs: list[Pair] | None = None
        self.form = network
        """What runs; the network itself until pairs were found, and where folding changes more than rounding."""

    def __len__(self) -> int:
        """Pairs that are one layer in the form."""
        return len(self._pairs or ())

    @torch.no_grad()
    def renew(self, images: Tensor) -> bool:
        """Fold weights that were copied into the network since the last call, and compare the forms on `images`.

        `images` `[B, 3, H, W]` of the first call also show which BatchNorm reads which convolution. Every version is
        compared: a convolution that something else reads too shows only once its BatchNorm or that reader was trained.
        False: folding changes more than rounding, so `form` is the network from now on; copy its weights anew.
        """
        images = images[..., :COMPARED_SIDE, :COMPARED_SIDE]
        if self._pairs is None:
            self._begin(images)
        elif self._pairs:
            exact = self._network(images)
            self._fold(self._pairs)
            # outputs that are not finite tell nothing about folding; the warm-up refuses what is made of them
            if bool(torch.isfinite(exact).all()) and not _close(self.form(images), exact):
                self.form, self._pairs = self._network, []
                return False
        return True

    def _begin(self, images: Tensor) -> None:
        found, exact = _found(self._network, images)
        if not bool(torch.isfinite(exact).all()):
            return  # broken weights tell nothing about the network; the warm-up refuses them
        form, pairs = _form(self._network, found)
        kept = [pair.convolution.weight.clone() for pair in pairs]
        self._fold(pairs)
        if _close(form(images), exact):
            self.form, self._pairs = form, pairs
            return
        for pair, weight in zip(pairs, kept, strict=True):
            pair.convolution.weight.copy_(weight)
        self._pairs = []

    @staticmethod
    def _fold(pairs: list[Pair]) -> None:
        for pair in pairs:
            pair.fold()


def _close(logits: Tensor, exact: Tensor) -> bool:
    return float((logits - exact).abs().max()) <= CLOSE * float(exact.abs().max())


def _found(network: nn.Module, images: Tensor) -> tuple[list[tuple[nn.Conv2d, nn.BatchNorm2d]], Tensor]:
    """Convolutions whose every output is what one BatchNorm reads, with it; and the logits of `images`."""
    made: dict[int, tuple[weakref.ref[Tensor], nn.Conv2d]] = {}
    readers: dict[nn.Conv2d, list[nn.BatchNorm2d]] = {}
    sources: dict[nn.BatchNorm2d, list[nn.Conv2d | None]] = {}
    calls: dict[nn.Conv2d, int] = {}

    def note_output(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        assert isinstance(layer, nn.Conv2d)
        made[id(output)] = weakref.ref(output), layer  # weak: else all maps of a pass would stay in memory
        calls[layer] = calls.get(layer, 0) + 1

    def note_input(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(layer, nn.BatchNorm2d)
        output, source = made.get(id(inputs[0]), (None, None))
        read = source if output is not None and output() is inputs[0] else None
        sources.setdefault(layer, []).append(read)
        if read is not None:
            readers.setdefault(read, []).append(layer)

    layers = list(network.modules())
    handles = [one.register_forward_hook(note_output) for one in layers if isinstance(one, nn.Conv2d)]
    handles += [one.register_forward_pre_hook(note_input) for one in layers if _is_norm(one)]
    try:
        logits: Tensor = network(images)
    finally:
        for handle in handles:
            handle.remove()
    pairs = [
        (layer, norms[0])
        for layer, norms in readers.items()
        if set(norms) == {norms[0]} and len(norms) == calls[layer] and set(sources[norms[0]]) == {layer}
    ]
    return pairs, logits


def _is_norm(layer: nn.Module) -> bool:
    return type(layer) is nn.BatchNorm2d and layer.running_mean is not None


def _form(network: nn.Module, found: list[tuple[nn.Conv2d, nn.BatchNorm2d]]) -> tuple[nn.Module, list[Pair]]:
    """A copy of `network` that shares its tensors: convolutions of pairs have a bias, their BatchNorm does nothing."""
    shared = {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())}
    form = copy.deepcopy(network, shared)
    names = {layer: name for name, layer in network.named_modules()}
    pairs = []
    for layer, norm in found:
        twin = form.get_submodule(names[layer])
        assert isinstance(twin, nn.Conv2d)
        twin.bias = nn.Parameter(layer.weight.new_empty(layer.out_channels), requires_grad=False)
        parent, _, last = names[norm].rpartition(".")
        setattr(form.get_submodule(parent), last, nn.Identity())
        pairs.append(Pair(layer, norm, twin.bias))
    return form, pairs
