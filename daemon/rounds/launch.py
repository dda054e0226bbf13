"""The command line of a round: `accelerate launch -m adapters.round SPEC` with this interpreter."""

import os
import re
import sys
from pathlib import Path

from configs.round import RoundSettings

MEMORY_KEPT = {"MALLOC_MMAP_THRESHOLD_": str(2**32), "MALLOC_TRIM_THRESHOLD_": str(2**33)}
"""glibc's allocator keeps what a training step frees instead of returning it to the system: touching new pages costs
more than most operations on maps of 32 MiB and more (docs/explanation/decisions/0010). A round ends with its process,
so nothing is kept for long."""

LAUNCHER_VARIABLES = re.compile(
    "(GROUP_|LOCAL_|ROLE_)?(RANK|WORLD_SIZE)|ROLE_NAME|NODE_RANK|MASTER_(ADDR|PORT)|OMP_NUM_THREADS"
    "|(ACCELERATE|FSDP|DEEPSPEED|MEGATRON_LM|PARALLELISM_CONFIG|TORCHELASTIC|PET|PMI|OMPI|MV2)_.*"
)
"""Variables that accelerate, torchrun and MPI set for their processes. If the daemon's environment has them, a round
would wait for ranks that do not exist."""


def launch_command(settings: RoundSettings, spec: Path) -> list[str]:
    """Return the command with which Accelerate starts one process or many.

    With `round.accelerate_config` that file decides about processes and precision, and mfmd sets only threads.
    """
    flags = ["--num_cpu_threads_per_process", str(settings.threads or _threads(settings.processes))]
    if settings.accelerate_config is not None:
        flags += ["--config_file", str(settings.accelerate_config)]
    else:
        flags += ["--num_processes", str(settings.processes), "--num_machines", "1", "--dynamo_backend", "no"]
        flags += ["--mixed_precision", settings.mixed_precision]
        if settings.processes > 1:
            flags.append("--multi_gpu")
        elif settings.device == "cpu":
            flags.append("--cpu")
    launch = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch"]
    return [*launch, *flags, "-m", "adapters.round", str(spec)]


def launch_environment(settings: RoundSettings) -> dict[str, str]:
    """Return the environment of a round: the daemon's without the variables of launchers.

    The round's own launcher sets those. Output is unbuffered, so the log shows what happened before a kill. The user's
    settings of the allocator win over mfmd's.
    """
    inherited = {name: value for name, value in os.environ.items() if not LAUNCHER_VARIABLES.fullmatch(name)}
    environment = {**MEMORY_KEPT, **inherited, "PYTHONUNBUFFERED": "1", "TOKENIZERS_PARALLELISM": "false"}
    if settings.device == "cpu" and settings.processes > 1:
        environment["ACCELERATE_USE_CPU"] = "true"  # `--cpu` alone would start a single process
    return environment


def _threads(processes: int) -> int:
    """Give each process its share of the cores; the launcher's default is one thread."""
    return max(1, len(os.sched_getaffinity(0)) // processes if hasattr(os, "sched_getaffinity") else 1)
