"""Comparisons of versions on frames of the buffer: the daemon asks, the observer answers.

    state/comparisons/000007/{request.json, scores.json}

The control plane holds no tensors, so it writes a request; the observer scores the versions and writes `scores.json`
last. Both survive a kill: a request without scores is answered again.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field

from storage import durable
from storage.durable.record import Record, read_record
from storage.errors import StorageError
from storage.registry.files import numbers
from storage.rounds.records import ModelScores

KEPT = 20
"""Newest answered comparisons that stay on disk."""

Purpose = Literal["recall", "probation"]
"""Why two versions are compared."""


class ComparisonRequest(Record):
    """`request.json`: the versions to score, and on what; written by the daemon."""

    number: int
    """Number of the comparison."""
    purpose: Purpose
    """Which rule of the gate asked."""
    versions: tuple[int, ...]
    """Versions to score, the one that serves first."""
    frames: tuple[int, ...]
    """Ids of the frames to score on. Evicted and damaged ones are omitted from the answer."""
    source: bool = False
    """Whether to score on the labelled source validation images too."""
    canary: bool = False
    """Whether to score on the canary images too: labelled target images."""
    created: float
    """Unix time (seconds)."""


class ComparisonScores(Record):
    """`scores.json`: what the observer measured."""

    status: Literal["completed", "failed"]
    """failed: a version or the buffer could not be read; `reason` says which."""
    reason: str = ""
    """Why it failed; empty otherwise."""
    frames: tuple[int, ...] = ()
    """Ids of the frames that were scored, in the order of every list over images."""
    models: tuple[ModelScores, ...] = ()
    """Scores of each version, in the order of the request. `agreement` is with the first."""
    canary: tuple[ModelScores, ...] = ()
    """Of each version, the counts (`canary`) and nuclear norms (`gram`) of canary images; empty without any."""
    canary_styles: list[list[float]] = Field(default_factory=list)
    """Style vectors of the canary images, [images][channels], in their order."""
    reference_marginal: list[float] = Field(default_factory=list)
    """Reference class shares of diversity, as in `RoundScores`."""
    seconds: float = 0.0
    """Time that the scoring took (seconds)."""


class ComparisonStore:
    """The comparisons of a state directory. The daemon writes requests, the observer writes scores."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def ask(
        self,
        purpose: Purpose,
        versions: Sequence[int],
        frames: Sequence[int],
        *,
        source: bool = False,
        canary: bool = False,
    ) -> ComparisonRequest:
        """Write a request durably, remove old answered ones, and return it."""
        known = numbers(self.root)
        request = ComparisonRequest(
            number=max(known, default=0) + 1,
            purpose=purpose,
            versions=tuple(versions),
            frames=tuple(frames),
            source=source,
            canary=canary,
            created=time.time(),
        )
        folder = self._folder(request.number)
        durable.make_directory(folder)
        durable.write_record(folder / "request.json", request)
        for number in known[:-KEPT]:
            durable.retire_directory(self._folder(number))
        return request

    def request(self, number: int) -> ComparisonRequest | None:
        """Return a request; None when it is gone or was never written whole. Raises StorageError when damaged."""
        return read_record(self._folder(number) / "request.json", ComparisonRequest)

    def waiting(self) -> ComparisonRequest | None:
        """Return the oldest request without scores; None when every one is answered. A damaged one does not count."""
        for number in numbers(self.root):
            if not (self._folder(number) / "scores.json").exists() and (request := self._readable(number)) is not None:
                return request
        return None

    def answer(self, number: int, scores: ComparisonScores) -> None:
        """Write the scores of a request durably."""
        durable.write_record(self._folder(number) / "scores.json", scores)

    def scores(self, number: int) -> ComparisonScores | None:
        """Return the scores of a request; None while they are waited for. Raises StorageError when damaged."""
        return read_record(self._folder(number) / "scores.json", ComparisonScores)

    def _readable(self, number: int) -> ComparisonRequest | None:
        try:
            return self.request(number)
        except StorageError:
            return None

    def _folder(self, number: int) -> Path:
        return self.root / f"{number:06d}"
