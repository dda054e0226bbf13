"""Random numbers of a training step, from a generator on the CPU.

Whether an augmentation happens is then known without asking the GPU, and runs repeat under a seed. Several processes
draw the same numbers for the batch of all of them, and each keeps its own rows: together they do what one process with
the whole batch would do.
"""

import torch
from torch import Tensor


class Draws:
    """A seeded stream of uniform numbers in [0, 1), shared by the processes of a round."""

    def __init__(self, seed: int, *, rank: int = 0, processes: int = 1) -> None:
        """`rank` of `processes` says which rows of `per_image` are this process's own."""
        self.generator = torch.Generator().manual_seed(seed)
        self._rank, self._processes = rank, processes

    def shared(self, *shape: int) -> Tensor:
        """Numbers that hold for the whole batch, `shape`, on the CPU."""
        return torch.rand(*shape, generator=self.generator)

    def per_image(self, images: int, *shape: int) -> Tensor:
        """Numbers for each of this process's `images`, [images, *shape], on the CPU."""
        everyone = torch.rand(images * self._processes, *shape, generator=self.generator)
        return everyone[self._rank * images : (self._rank + 1) * images]

    def order(self, count: int) -> list[int]:
        """0 to `count` - 1 in random order, for the whole batch."""
        order: list[int] = torch.randperm(count, generator=self.generator).tolist()
        return order

    def state_dict(self) -> dict[str, Tensor]:
        """Where the stream is."""
        return {"generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on where `state` was taken."""
        self.generator.set_state(state["generator"])
