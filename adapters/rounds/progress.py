"""Progress of a running round: a line in `progress.jsonl` about once a second."""

import math
import time
from typing import Any, Literal

import psutil
import torch
from torch import Tensor

from adapters.errors import TrainingFailed
from adapters.recipes.recipe import StepLosses
from configs.round import RoundSettings
from storage.rounds.folder import RoundFolder
from storage.rounds.records import Progress

REPORT_SECONDS = 1.0
"""Time between two lines of training (seconds)."""


class RoundProgress:
    """Keeps the losses of each step on the device and reads them only when a line is due.

    Reading a value waits for the GPU. Once a second that costs nothing; once a step it would keep the CPU from
    preparing the next one.
    """

    def __init__(self, folder: RoundFolder | None, settings: RoundSettings) -> None:
        """Open the file; with `folder` None nothing is written and losses are only checked (all processes but one)."""
        self._folder, self._budget, self._limit = folder, settings.steps, settings.advanced.loss_limit
        self.steps = 0
        """Steps done."""
        self._names: list[list[str]] = []
        self._rows: list[Tensor] = []
        self._images = 0
        self._since = time.monotonic()

    def phase(self, phase: Literal["loading", "training", "scoring", "done"], **figures: Any) -> None:
        """Write a line with the current activity of the round, and `figures`, other fields of `Progress`."""
        self._since = time.monotonic()
        if self._folder is not None:
            line = Progress(
                at=time.time(),
                phase=phase,
                step=self.steps,
                steps=self._budget,
                memory={"resident": psutil.Process().memory_info().rss, "device": torch.cuda.max_memory_reserved()},
                **figures,
            )
            self._folder.append_progress(line)

    def add(self, result: StepLosses, images: int) -> None:
        """Count one step over `images` images (of this process); flush when a line is due, and raise like it."""
        self.steps += 1
        self._images += images
        kept = {} if result.kept_ratio is None else {"kept_ratio": result.kept_ratio}
        reported = {**result.losses, **kept}
        self._names.append(list(reported))
        self._rows.append(torch.stack([value.float() for value in reported.values()]))
        if time.monotonic() - self._since >= REPORT_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write the means of the steps since the last line; of each loss, over the steps that have it.

        Raises TrainingFailed, naming the step, when a loss was not finite or above `round.advanced.loss_limit`.
        """
        if not self._rows:
            return
        parts = torch.cat(self._rows).tolist()  # one wait for the device
        rate = self._images / max(time.monotonic() - self._since, 1e-9)
        values, first = iter(parts), self.steps - len(self._rows) + 1
        table = [{name: next(values) for name in names} for names in self._names]
        self._images, self._rows, self._names = 0, [], []
        for step, row in enumerate(table, start=first):
            self._check(step, row)
        found: dict[str, list[float]] = {}
        for row in table:
            for name, value in row.items():
                found.setdefault(name, []).append(value)
        losses = {name: sum(column) / len(column) for name, column in found.items()}
        kept_ratio = losses.pop("kept_ratio", None)
        self.phase("training", losses=losses, kept_ratio=kept_ratio, images_per_second=rate)

    def _check(self, step: int, values: dict[str, float]) -> None:
        if not all(map(math.isfinite, values.values())):
            raise TrainingFailed(f"non-finite loss at step {step}: {values}")
        if max(values.values()) > self._limit:
            raise TrainingFailed(f"loss above round.advanced.loss_limit ({self._limit:g}) at step {step}: {values}")
