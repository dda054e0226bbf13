"""Encoders whose layers have an order, so that early ones can learn more slowly than late ones (layer decay)."""

from collections.abc import Sequence

from torch import nn


class LayeredEncoder(nn.Module):
    """What an encoder tells the optimizer about its parts."""

    def layers(self) -> Sequence[nn.Module]:
        """Return the parts that may be pretrained, from the image to the maps; parameters beside them count as last."""
        return ()

    def added(self) -> Sequence[nn.Module]:
        """Return the parts that always begin untrained; they learn at the decoder's rate."""
        return ()
