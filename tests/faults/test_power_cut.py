"""The power goes after every call that changes a file: the promise holds on what the disk may then hold."""

import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import get_args

import pytest

from storage import durable
from tests.faults import world
from tests.faults.io_tap import tapped
from tests.faults.oracle import Oracle
from tests.faults.power_cut import Disk, Moment, PowerCut, materialise

JOBS = {name: job for name, job in world.JOBS.items() if name != "mirrors"}
"""Mirrors lie outside the state directory and are made anew from it."""


@pytest.fixture(scope="module")
def moments(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[dict[str, bytes], list[Moment]]]:
    """Every moment of one run of a job, recorded once; with the files that were dropped for it."""

    @cache
    def recorded(name: str) -> tuple[dict[str, bytes], list[Moment]]:
        root = tmp_path_factory.mktemp(name)
        (root / "drop").mkdir()
        (root / "state").mkdir()
        files = world.drop_files(root) if name in world.TAKING else {}
        cut = PowerCut(root / "state", lambda: facts(root))
        with tapped(root / "state", cut):
            JOBS[name](root)
        assert len(cut.moments) > 20
        return files, cut.moments

    return recorded


def facts(root: Path) -> bytes:
    """What was acknowledged so far."""
    path = root / "acknowledged"
    return path.read_bytes() if path.exists() else b""


@pytest.mark.parametrize("every", [pytest.param(8, id="some"), pytest.param(1, id="all", marks=pytest.mark.nightly)])
@pytest.mark.parametrize("disk", get_args(Disk))
@pytest.mark.parametrize("job", JOBS)
def test_after_a_power_cut_at_any_call_the_promise_holds(tmp_path: Path, moments, job: str, disk: Disk, every: int):
    files, recorded = moments(job)
    seen: set[int] = set()
    for number, moment in enumerate(recorded):
        content = hash((moment.facts, tuple(moment.disks[disk].items())))
        if content in seen:
            continue
        seen.add(content)
        if len(seen) % every:
            continue
        root = tmp_path / "cut"
        materialise(moment.disks[disk], root / "state")
        (root / "acknowledged").write_bytes(moment.facts)  # type: ignore[arg-type]
        oracle = prepared(root, files)
        try:
            oracle.check()
            if len(seen) % (3 * every) == 0:
                oracle.repair()
                world.JOBS[job](root)
                oracle.check_finished() if job in world.TAKING else oracle.check(tidy=job != "rounds")
        except BaseException as error:
            error.add_note(f"{disk} disk at moment {number}, after {moment.after}")
            raise
        shutil.rmtree(root)
    assert len(seen) > 5


def prepared(root: Path, files: dict[str, bytes]) -> Oracle:
    """The drop folder beside a disk: it has a file system of its own."""
    (root / "drop").mkdir()
    if files:
        world.drop_files(root)
    return Oracle(root, files)


def test_the_model_forgets_what_was_not_synced(tmp_path: Path):
    """Written: gone. Written and synced, unnamed: gone. Synced with its folder: there. Removed, unsynced: back."""
    root = tmp_path / "disk"
    root.mkdir()
    (root / "old").write_bytes(b"old")
    cut = PowerCut(root, lambda: None)
    with tapped(root, cut):
        (root / "written").write_bytes(b"written")
        assert cut.moments[-1].disks["lost"] == {"old": b"old"}
        assert cut.moments[-1].disks["named"] == {"old": b"old", "written": b""}
        assert cut.moments[-1].disks["torn"]["written"] == b"writ"
        durable.fsync_file(root / "written")
        assert cut.moments[-1].disks["lost"] == {"old": b"old"}
        durable.fsync_directory(root)
        assert cut.moments[-1].disks["lost"] == {"old": b"old", "written": b"written"}
        (root / "old").unlink()
        assert cut.moments[-1].disks["lost"]["old"] == b"old"
        assert "old" not in cut.moments[-1].disks["named"]
        durable.write_bytes(root / "written", b"new")
    after = {moment.after.split(" ")[0]: moment.disks["lost"].get("written") for moment in cut.moments}
    assert after["rename"] == b"written", "a rename is not durable before its folder is synced"
    assert cut.moments[-1].disks["lost"] == {"written": b"new"}
