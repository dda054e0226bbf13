"""Rounds in processes of their own, forked from one that has loaded torch and transformers already."""

import os
import sys
from collections.abc import Callable
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch.distributed

from adapters import round as round_process
from storage.rounds.folder import RoundFolder
from tests.forking import CONTEXT

DEADLINE = 120.0
"""Longest wait for a round on a busy machine (seconds)."""
LAUNCHED = {
    "ACCELERATE_USE_CPU": "true", "ACCELERATE_MIXED_PRECISION": "no", "ACCELERATE_DYNAMO_BACKEND": "no",
    "OMP_NUM_THREADS": "1",
}  # fmt: skip
"""What `accelerate launch` says to every process."""


def fork(folder: RoundFolder, before: Callable[[], None] | None = None, **environment: str) -> BaseProcess:
    """Start the round of a folder as `python -m adapters.round` does, after a call of `before`; output into its log."""
    return _start(partial(_round, folder, before), folder.log, environment)


def run_pair(folder: RoundFolder, before: Callable[[], None] | None = None) -> None:
    """A round on the two processes that `accelerate launch` starts on one machine, each after a call of `before`."""
    store = _launchers_store()
    for process in [fork(folder, before, **environment) for environment in _pair(store)]:
        assert wait(process) == 0, folder.log.read_text()


def both_do(work: Callable[[], None], log: Path) -> None:
    """A pair of processes does `work`, each of them, to its end; AssertionError with what they said if one fails."""
    store = _launchers_store()
    for process in [_start(partial(_to_the_end, work), log, environment) for environment in _pair(store)]:
        assert wait(process) == 0, log.read_text()


def wait(process: BaseProcess) -> int | None:
    """Its exit status; minus the signal that killed it; None if it still runs after the deadline."""
    process.join(DEADLINE)
    return process.exitcode


def _launchers_store() -> torch.distributed.TCPStore:
    return torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)


def _pair(store: torch.distributed.TCPStore) -> list[dict[str, str]]:
    """What the launcher says to each of two processes."""
    both = {
        "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "0", "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0",
    }  # fmt: skip
    return [{**LAUNCHED, **both, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(2)]


def _start(work: Callable[[], None], log: Path, environment: dict[str, str]) -> BaseProcess:
    process = CONTEXT.Process(target=_run, args=(work, log, environment), daemon=True)
    process.start()
    return process


def _run(work: Callable[[], None], log: Path, environment: dict[str, str]) -> None:
    output = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    for stream in (1, 2):
        os.dup2(output, stream)
    os.environ.update(environment)
    torch.set_num_threads(1)
    work()


def _round(folder: RoundFolder, before: Callable[[], None] | None) -> None:
    if before is not None:
        before()
    sys.exit(round_process.main([str(folder.spec_path)]))


def _to_the_end(work: Callable[[], None]) -> None:
    work()
    round_process.leave(0)
