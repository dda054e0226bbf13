"""A real small file system fills up: ingest pauses, goes on by itself when there is room again, and loses nothing."""

import errno
import os
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from storage.checking import check_state
from storage.layout import StateLayout
from storage.registry.registry import CheckpointRegistry
from tests.daemon.conftest import add_small_version, write_config
from tests.daemon.running import command
from tests.faults import world
from tests.faults.io_tap import tapped
from tests.faults.oracle import Oracle
from tests.faults.power_cut import PowerCut, materialise

SIZE = 8 << 20
"""Size of the file system (bytes)."""
MAKE = {"ext4": ["-m", "0", "-b", "4096"]}
"""Options of mkfs: no blocks that only root may use."""
MOVES = 12
"""Moves that must need no space: their lines fit into the space behind the end of the history."""


@pytest.fixture
def small_disk(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """An empty file system of 8 MB: tmpfs, or what the test's parameter says, in a file."""
    folder, kind = tmp_path / "state", getattr(request, "param", "tmpfs")
    folder.mkdir()
    make = ["true"]
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(folder)]
    if kind != "tmpfs":
        image = tmp_path / "disk"
        with image.open("wb") as file:
            file.truncate(SIZE)
        make = [f"mkfs.{kind}", "-q", *MAKE[kind], str(image)]
        mount = ["mount", "-o", "loop", str(image), str(folder)]
    for step in (make, mount):
        try:
            answer = subprocess.run(step, capture_output=True, text=True)
        except FileNotFoundError:
            pytest.skip(f"no {step[0]} command here")
        if answer.returncode:
            pytest.skip(f"no {kind} may be mounted here: {answer.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder: Path, leave: int) -> Path:
    """Take all space but `leave` bytes; the file system may need some of it for its own lists of blocks."""
    path, status = folder / "somebody_elses", os.statvfs(folder)
    left = max(0, status.f_bavail * status.f_frsize - leave)
    with path.open("wb", buffering=0) as file, suppress(OSError):
        while left and (taken := file.write(bytes(min(left, 4096)))):
            left -= taken
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


@pytest.mark.parametrize("small_disk", ["tmpfs", "ext4"], indirect=True)
def test_a_rollback_needs_no_space(small_disk: Path, tmp_path: Path):
    layout, config = StateLayout(small_disk), world.settings(tmp_path)
    layout.create()
    registry = CheckpointRegistry(layout.checkpoints)
    for _ in range(3):
        add_small_version(registry)
    registry.keep_space()
    filler = fill(small_disk, 0)
    with pytest.raises(OSError, match="No space left"):
        (small_disk / "x").write_bytes(b"x")
    done = command("rollback", "--config", str(write_config(tmp_path / "mfmd.yaml", config)))
    assert done.returncode == 0, done.stderr
    assert registry.serving_version() == 2
    for number in range(MOVES):
        registry.promote(1 + number % 2, by="operator", reason="back and forth")
    before = registry.history(), registry.serving(), registry.ref("previous")
    with pytest.raises(OSError, match="No space left"):
        registry.roll_back(to=None, by="operator", reason="\N{PILE OF POO}" * 2000)
    assert (registry.history(), registry.serving(), registry.ref("previous")) == before
    registry.promote(1, by="operator", reason="short")
    filler.unlink()
    assert check_state(layout) == []


def test_a_power_cut_on_a_full_disk_leaves_the_old_ref_or_the_new_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    layout = StateLayout(tmp_path / "state")
    layout.create()
    registry = CheckpointRegistry(layout.checkpoints)
    for _ in range(3):
        add_small_version(registry)
    cut = PowerCut(layout.root, registry.serving_version)
    with monkeypatch.context() as patch, tapped(layout.root, cut):
        patch.setattr("storage.durable.spares.write_bytes", _no_space)
        registry.roll_back(to=None, by="operator", reason="first")
        registry.promote(3, by="operator", reason="second")
    for number, moment in enumerate(cut.moments):
        for disk, content in moment.disks.items():
            found = StateLayout(tmp_path / f"{number}-{disk}")
            materialise(content, found.root)
            after = CheckpointRegistry(found.checkpoints)
            assert after.serving_version() in (2, 3) and after.ref("previous") is not None, (moment.after, disk)
            after.promote(1, by="operator", reason="it can be moved on")
            assert check_state(found) == [], (moment.after, disk)
    assert {moment.facts for moment in cut.moments} == {2, 3}


def test_a_spare_that_is_the_ref_itself_is_not_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    registry = CheckpointRegistry(tmp_path)
    for _ in range(3):
        add_small_version(registry)
    spare, path = registry.ref_path(".serving.spare"), registry.ref_path("serving")
    before = path.read_bytes()
    spare.unlink()
    spare.hardlink_to(path)
    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        patch.setattr("storage.durable.spares.write_bytes", _no_space)
        registry.roll_back(to=None, by="operator", reason="")
    assert path.read_bytes() == before
    assert registry.roll_back(to=None, by="operator", reason="").version == 2


def _no_space(path: Path, data: bytes) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
