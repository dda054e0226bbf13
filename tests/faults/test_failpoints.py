"""SIGKILL between every two durable steps, in a real process; then the promise, a restart, and the promise again."""

import ast
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from storage import failpoints
from tests.faults import processes, world
from tests.faults.oracle import Oracle

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def passed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Counter[str]]:
    """How often each job passes each place when nothing happens to it."""
    found = {}
    for name, job in world.JOBS.items():
        root = tmp_path_factory.mktemp(name)
        begin(name, root)
        found[name] = Counter(processes.passes(job, root))
    return found


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


def test_every_place_has_its_name_and_is_passed_by_a_job(passed: dict[str, Counter[str]]):
    assert set(places_in_the_code()) == set(failpoints.names())
    reached = set().union(*passed.values())
    assert reached == set(failpoints.names()), f"no job passes {set(failpoints.names()) - reached}"


@pytest.mark.parametrize("job", world.JOBS)
@pytest.mark.parametrize("place", failpoints.names())
def test_killed_at_a_place_it_keeps_its_promise(tmp_path: Path, passed: dict[str, Counter[str]], place: str, job: str):
    count = passed[job][place]
    if not count:
        return  # the test above holds that some job passes it
    for number in range(1, count + 1):
        root = tmp_path / str(number)
        root.mkdir()
        kill_and_restart(job, root, f"{place}:{number}")


def kill_and_restart(job: str, root: Path, failpoint: str) -> bool:
    """Kill a job there, hold what is left against the promise, do the job again and hold that against it too."""
    oracle = begin(job, root)
    killed = processes.killed_at(world.JOBS[job], root, failpoint)
    oracle.check()
    oracle.mend()
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
    with pytest.raises(ValueError, match="no place"):
        failpoints.arm(wrong)
