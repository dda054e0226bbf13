"""Rounds in processes of their own, forked from one that has loaded torch and transformers already."""

import os
import sys
from collections.abc import Callable
from multiprocessing.process import BaseProcess

import torch.distributed

from adapters import round as round_process
from storage.rounds import RoundFolder
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
    process = CONTEXT.Process(target=_run, args=(folder, before, environment), daemon=True)
    process.start()
    return process


def fork_pair(folder: RoundFolder, store: torch.distributed.TCPStore) -> list[BaseProcess]:
    """The two processes that `accelerate launch` starts on one machine, who find each other by the launcher's store."""
    both = {
        "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "0", "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0",
    }  # fmt: skip
    return [fork(folder, **LAUNCHED, **both, RANK=str(rank), LOCAL_RANK=str(rank)) for rank in range(2)]


def run_pair(folder: RoundFolder) -> None:
    """A round on two processes, to its end."""
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    for process in fork_pair(folder, store):
        assert wait(process) == 0, folder.log.read_text()


def wait(process: BaseProcess) -> int | None:
    """Its exit status; minus the signal that killed it; None if it still runs after the deadline."""
    process.join(DEADLINE)
    return process.exitcode


def _run(folder: RoundFolder, before: Callable[[], None] | None, environment: dict[str, str]) -> None:
    log = os.open(folder.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    for stream in (1, 2):
        os.dup2(log, stream)
    os.environ.update(environment)
    torch.set_num_threads(1)
    if before is not None:
        before()
    sys.exit(round_process.main([str(folder.spec_path)]))
