"""Streams of crops that a round reads from, and their positions."""

from typing import Generic

import torch

from adapters.sampling.crops import Batch, SourceCrops, TargetCrops, batches


class CropStream(Generic[Batch]):
    """Endless batches of `crops`, with a position that can be saved and restored."""

    def __init__(self, crops: SourceCrops | TargetCrops, device: torch.device) -> None:
        """Open the stream: pinned for `device`, read ahead from disk (`adapters.sampling.crops.batches`)."""
        self._crops, self._device = crops, device
        self._read = crops.rows.start
        self._batches = batches(crops, device)  # type: ignore[type-var]

    def __next__(self) -> Batch:
        batch: Batch = next(self._batches)  # type: ignore[assignment]  # of the kind that `crops` give
        self._read += 1
        return batch

    def state_dict(self) -> dict[str, int]:
        """Return how many batches were handed out; batches read ahead do not count."""
        return {"batches": self._read}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue after that many batches, without drawing them."""
        self._read = self._crops.rows.start = state["batches"]
        self._batches = batches(self._crops, self._device)  # type: ignore[type-var]
