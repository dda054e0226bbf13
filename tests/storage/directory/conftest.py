"""A state directory of the mfmd before `format.json`, and what tests of whole directories share."""

import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from configs.buffer import BufferSettings
from storage import failpoints
from storage.buffer.frames import FrameBuffer
from storage.buffer.observations import Observations
from storage.layout import StateLayout
from storage.registry.registry import CheckpointRegistry
from storage.rounds.folder import RoundStore
from storage.source.labelled import LabelledSet
from tests.sections import section

FORMAT_1 = Path(__file__).with_name("format_1.tar.xz")
"""A plain tar of the state directory of the mfmd before `format.json`: eight observed frames of 32x32, two imported
versions of a tiny SegFormer, one inconclusive round, a labelled source of three images."""
BUFFER = section(BufferSettings, height=32, width=32, tile=32, capacity_frames=8, holdout_fraction=0.3)
"""Settings of its buffer, which is full."""


@pytest.fixture
def old(tmp_path: Path) -> StateLayout:
    """That directory."""
    with tarfile.open(FORMAT_1) as tar:
        tar.extractall(tmp_path, filter="data")
    return StateLayout(tmp_path / "state")


@contextmanager
def killed_at(number: int) -> Iterator[None]:
    """Raise KeyboardInterrupt at the durable step `number` (1 is the first)."""
    passed = 0

    def die(place: str) -> None:
        nonlocal passed
        passed += 1
        if passed == number:
            raise KeyboardInterrupt(place)

    failpoints.watch(die)
    try:
        yield
    finally:
        failpoints.watch(None)


def open_everything(layout: StateLayout) -> None:
    """Open all that the directory held when it was made."""
    with FrameBuffer.open(layout, BUFFER, writable=True) as buffer:
        assert [buffer.read(record).shape for record in buffer.records()] == [(32, 32, 3)] * 8
    with Observations.open(layout.observations, writable=False) as observations:
        assert observations.observed() == {*range(1, 9)}
    registry = CheckpointRegistry(layout.checkpoints)
    assert (registry.serving_version(), registry.versions()) == (2, [1, 2])
    assert [event.event for event in registry.history()][-2:] == ["promoted", "inconclusive"]
    folder = RoundStore(layout.rounds).folder(1)
    assert folder.record().stage == "rejected" and folder.verdict() and folder.scores() and folder.progress()
    assert len(LabelledSet.open(layout)) == 3
