"""A real small file system fills up: ingest pauses, goes on by itself when there is room again, and loses nothing."""

import os
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from storage.checking import check_state
from storage.layout import StateLayout
from storage.registry.registry import CheckpointRegistry
from tests.faults import world
from tests.faults.oracle import Oracle

SIZE = 8 << 20
"""Size of the file system (bytes)."""


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """An empty tmpfs of 8 MB."""
    folder = tmp_path / "state"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(folder)]
    try:
        answer = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("no mount command here")
    if answer.returncode:
        pytest.skip(f"a tmpfs may not be mounted here: {answer.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder: Path, leave: int) -> Path:
    """Take all space but `leave` bytes."""
    path, status = folder / "somebody_elses", os.statvfs(folder)
    path.write_bytes(bytes(max(0, status.f_bavail * status.f_frsize - leave)))
    return path


@pytest.mark.parametrize("leave", [4096, 20_000, 60_000, 150_000])
def test_a_full_disk_pauses_ingest_and_room_lets_it_go_on(
    small_disk: Path, tmp_path: Path, leave: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("daemon.ingest.worker.PAUSE_SECONDS", 0.02)
    (tmp_path / "drop").mkdir()
    config = world.settings(tmp_path, buffer={"capacity_frames": 64})
    oracle = Oracle(tmp_path, capacity=64)
    with world.running_ingest(tmp_path, config) as (ingest, buffer):
        oracle.drop(world.drop_files(tmp_path, good=4))
        world.step_until(ingest, lambda: not world.waiting(tmp_path, buffer))
        filler = fill(small_disk, leave)
        oracle.drop(world.drop_files(tmp_path, first=10, good=40))
        world.step_until(ingest, lambda: ingest.activity[1].state == "paused")
        assert "No space left" in ingest.activity[1].reason
        assert world.waiting(tmp_path, buffer), "the disk was not full"
        oracle.check()
        for _ in range(20):
            ingest.step()
        assert ingest.activity[1].state == "paused"
        filler.unlink()
        world.step_until(ingest, lambda: not world.waiting(tmp_path, buffer))
        world.step_until(ingest, lambda: ingest.activity[1].state == "running")
    oracle.check_finished()
    oracle.repair()
    assert not list(StateLayout(small_disk).buffer.rglob("*.partial"))


def test_a_full_disk_moves_no_ref_and_leaves_no_line_of_a_move(small_disk: Path):
    """Lines of the history still fit into its last block: refs, which want a block of their own, do not."""
    layout = StateLayout(small_disk)
    layout.create()
    registry = CheckpointRegistry(layout.checkpoints)
    weights = layout.checkpoints / "weights"
    weights.write_bytes(b"weights")
    for version in (1, 2, 3):
        registry.add(weights, world.manifest(), by="import")
        registry.promote(version, by="operator", reason="")
    before = registry.history()
    filler = fill(small_disk, 0)
    for reason in ("short", "r" * 1500, "r" * 1500, "r" * 1500):
        for move in (partial(registry.roll_back, to=None), partial(registry.promote, 1)):
            with pytest.raises(OSError, match="No space left"):
                move(by="operator", reason=reason)
    assert registry.history() == before
    filler.unlink()
    assert check_state(layout) == []
    assert registry.roll_back(to=None, by="operator", reason="").version == 2
