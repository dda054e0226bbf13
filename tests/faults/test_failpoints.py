"""SIGKILL between every two durable steps, in a real process; then the promise, a restart, and the promise again."""

import ast
import os
import signal
import subprocess
import sys
from itertools import count
from pathlib import Path

import pytest

from storage import failpoints
from tests.faults import processes, world
from tests.faults.oracle import Oracle

ROOT = Path(__file__).parents[2]


EVERYWHERE = {"file", "directory", "publish"}
BUFFER = {"array", "catalog", "transaction", "frames"}
PASSES = {
    "ingest": EVERYWHERE | BUFFER,
    "originals": EVERYWHERE | BUFFER | {"remove", "move"},
    "leases": EVERYWHERE | BUFFER | {"partial"},
    "rebuild": EVERYWHERE | BUFFER | {"folder"},
    "registry": EVERYWHERE | {"line", "retire", "remove"},
    "mirrors": EVERYWHERE | {"link", "retire"},
    "rounds": EVERYWHERE | {"retire", "remove"},
    "source": EVERYWHERE | {"retire"},
}
"""Kinds of places (what stands before the dot) that each job passes; the first test holds that it does."""
KEEPS = ("frames.discarded", "rebuild")
"""The one exception: a buffer that is rebuilt keeps what it had."""
PASSED_BY = {
    place: [job for job, kinds in PASSES.items() if place.split(".")[0] in kinds and (place, job) != KEEPS]
    for place in failpoints.PLACES
}
ONCE = [(place, jobs[number % len(jobs)]) for number, (place, jobs) in enumerate(PASSED_BY.items())]
"""Each place with one of its jobs, not always the same one."""


def begin(job: str, root: Path) -> Oracle:
    """The files that a job finds, and who judges it."""
    (root / "drop").mkdir()
    files = world.drop_files(root) if job in world.TAKING else {}
    return Oracle(root, files)


def places_in_the_code() -> list[str]:
    """The argument of every `step(...)`."""
    return [
        ast.literal_eval(node.args[0])
        for path in (ROOT / "storage").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "step"
    ]


def test_every_place_has_its_name():
    assert set(places_in_the_code()) == set(failpoints.PLACES)


@pytest.mark.parametrize("job", world.JOBS)
def test_a_job_passes_the_places_that_it_is_killed_at(tmp_path: Path, job: str):
    begin(job, tmp_path)
    passed = set(processes.passes(world.JOBS[job], tmp_path))
    assert passed == {place for place, jobs in PASSED_BY.items() if job in jobs}


@pytest.mark.parametrize(("place", "job"), ONCE)
def test_killed_at_a_place_it_keeps_its_promise(tmp_path: Path, place: str, job: str):
    assert kill_and_restart(job, tmp_path, place)


@pytest.mark.nightly
@pytest.mark.parametrize(("place", "job"), [(place, job) for place, jobs in PASSED_BY.items() for job in jobs])
def test_killed_at_any_pass_of_a_place_it_keeps_its_promise(tmp_path: Path, place: str, job: str):
    for number in count(1):
        root = tmp_path / str(number)
        root.mkdir()
        if not kill_and_restart(job, root, f"{place}:{number}"):
            break
    assert number > 1, "the job never comes there"


def kill_and_restart(job: str, root: Path, failpoint: str) -> bool:
    """Kill a job there, hold what is left against the promise, do the job again and hold that against it too.

    Returns whether the job came there; what is left is held against the promise in any case.
    """
    oracle = begin(job, root)
    killed = processes.killed_at(world.JOBS[job], root, failpoint)
    oracle.check()
    oracle.repair()
    world.JOBS[job](root)
    if job in world.TAKING:
        oracle.check_finished()
    else:
        oracle.check(
            tidy=job != "rounds"
        )  # a round's half-written state is the next state's, or the daemon's, to remove
    return killed


def test_the_environment_arms_a_place(tmp_path: Path):
    program = (
        f"from pathlib import Path\nfrom storage import durable\ndurable.write_text(Path({str(tmp_path)!r}) / 'a', 'x')"
    )
    environment = os.environ | {failpoints.VARIABLE: "file.synced"}
    answer = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=environment, timeout=60)
    assert answer.returncode == -signal.SIGKILL
    assert [path.suffix for path in tmp_path.iterdir()] == [".partial"]


@pytest.mark.parametrize("wrong", ["nowhere", "file.synced:x", "nowhere:2"])
def test_a_place_that_does_not_exist_is_refused(wrong: str):
    with pytest.raises(ValueError, match="not a failpoint"):
        failpoints.arm(wrong)
