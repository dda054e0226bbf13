"""Streams of crops that a round reads from, and how far each has been read."""

from typing import Generic

import torch

from adapters.sampling.crops import Batch, SourceCrops, TargetCrops, batches


class CropStream(Generic[Batch]):
    """Endless batches of `crops`, with a position that can be saved and gone to."""

    def __init__(self, crops: SourceCrops | TargetCrops, device: torch.device) -> None:
        """Batches come pinned for `device`, read ahead when they come from disk (`adapters.sampling.crops.batches`)."""
        self._crops, self._device = crops, device
        self._read = crops.rows.start
        self._batches = batches(crops, device)  # type: ignore[type-var]

    def __next__(self) -> Batch:
        batch: Batch = next(self._batches)  # type: ignore[assignment]  # of the kind that `crops` give
        self._read += 1
        return batch

    def state_dict(self) -> dict[str, int]:
        """How many batches were handed out; what was read ahead does not count."""
        return {"batches": self._read}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on after as many batches, without drawing them."""
        self._read = self._crops.rows.start = state["batches"]
        self._batches = batches(self._crops, self._device)  # type: ignore[type-var]
