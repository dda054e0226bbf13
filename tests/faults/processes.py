"""Real processes that do a job of `world` until they are killed. A fork server has imported everything beforehand."""

import signal
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

from storage import failpoints
from tests.forking import CONTEXT

Job = Callable[[Path], None]


def start(job: Job, root: Path, failpoint: str | None = None) -> BaseProcess:
    """Begin a job in a process of its own, which dies at `failpoint` if one is given."""
    process = CONTEXT.Process(target=_run, args=(job, root, failpoint))
    process.start()
    return process


def killed_at(job: Job, root: Path, failpoint: str) -> bool:
    """Do a job in a process that kills itself at `failpoint`; whether it came there. Fails when it ends otherwise."""
    process = start(job, root, failpoint)
    process.join(timeout=100)
    code = process.exitcode
    assert code in (0, -signal.SIGKILL), f"{job.__name__} ended with {code}, armed for {failpoint}"
    return code == -signal.SIGKILL


def passes(job: Job, root: Path) -> list[str]:
    """Do a job in a process of its own, to its end; the places that it passed, in order."""
    process = CONTEXT.Process(target=_record, args=(job, root))
    process.start()
    process.join(timeout=100)
    assert process.exitcode == 0
    return (root / "passes").read_text().split()


def _run(job: Job, root: Path, failpoint: str | None) -> None:
    if failpoint is not None:
        failpoints.arm(failpoint)
    job(root)


def _record(job: Job, root: Path) -> None:
    seen: list[str] = []
    failpoints.watch(seen.append)
    job(root)
    failpoints.watch(None)
    (root / "passes").write_text(" ".join(seen))
