"""A pull towards the released weights: the source-free guard against drift (L2-SP: Li et al., ICML 2018)."""

import torch

from adapters.networks.network import SegmentationNetwork


class Anchor:
    """After each step: weight <- weight - learning rate * strength * (weight - released weight).

    Decoupled from the gradient, as AdamW's weight decay is, so that Adam's scaling does not change its strength.
    """

    def __init__(self, student: SegmentationNetwork, released: SegmentationNetwork | None, strength: float) -> None:
        """Prepare the pull; with `strength` 0 `released` may be None. Raises ValueError without released weights."""
        self._strength = strength
        self._released: dict[torch.nn.Parameter, torch.Tensor] = {}
        if strength == 0.0:
            return
        if released is None:
            raise ValueError(f"a pull of {strength} towards the released weights needs the released version")
        pairs = zip(student.parameters(), released.parameters(), strict=True)
        self._released = {mine: theirs.detach() for mine, theirs in pairs}

    @torch.no_grad()
    def pull(self, optimizer: torch.optim.Optimizer | None) -> None:
        """Move the parameters in `optimizer` by one step; the Rebuilder's have no released weights and stay.

        With `optimizer` None nothing learns, so nothing is pulled.
        """
        if self._strength == 0.0 or optimizer is None:
            return
        for group in optimizer.param_groups:
            mine = [parameter for parameter in group["params"] if parameter in self._released]
            if mine:
                theirs = [self._released[parameter] for parameter in mine]
                # at most the whole way: beyond it the weights would swing around the released ones and diverge
                torch._foreach_lerp_(mine, theirs, min(1.0, group["lr"] * self._strength))
