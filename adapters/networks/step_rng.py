"""Random numbers of a training step, from a generator on the CPU.

So the step knows whether an augmentation happens without asking the GPU, and runs repeat under a seed. Several
processes draw the same numbers for the batch of all of them, and each keeps its own rows. Together they compute what
one process with the whole batch would compute.
"""

import torch
from torch import Tensor

SEEDS = 2**24
"""Number of seeds that a uniform float32 can distinguish."""


class StepRng:
    """A seeded stream of uniform numbers in [0, 1), shared by the processes of a round."""

    def __init__(self, seed: int, *, rank: int = 0, processes: int = 1) -> None:
        """Seed the stream; `rank` of `processes` says which rows of `per_image` belong to this process."""
        self.generator = torch.Generator().manual_seed(seed)
        self._rank, self._processes = rank, processes

    def shared(self, *shape: int) -> Tensor:
        """Draw numbers that hold for the whole batch, `shape`, on the CPU."""
        return torch.rand(*shape, generator=self.generator)

    def per_image(self, images: int, *shape: int) -> Tensor:
        """Draw numbers for each of this process's `images`, [images, *shape], on the CPU."""
        everyone = torch.rand(images * self._processes, *shape, generator=self.generator)
        return everyone[self._rank * images : (self._rank + 1) * images]

    def normal(self, like: Tensor) -> Tensor:
        """Draw standard normal numbers of the shape `[images, ...]`, type and device of `like`, on that device.

        Numbers as many as pixels would take long to draw here and to move. So each image has a generator of its own on
        the device, whose seed is drawn here.
        """
        drawn = torch.empty_like(like)
        for image, seed in zip(drawn, (SEEDS * self.per_image(len(like))).long().tolist(), strict=True):
            image.normal_(generator=torch.Generator(like.device).manual_seed(seed))
        return drawn

    def order(self, count: int) -> list[int]:
        """Return 0 to `count` - 1 in random order, for the whole batch."""
        order: list[int] = torch.randperm(count, generator=self.generator).tolist()
        return order

    def state_dict(self) -> dict[str, Tensor]:
        """Return the position of the stream."""
        return {"generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue from `state`."""
        self.generator.set_state(state["generator"])
