"""The command line of a round: `accelerate launch -m adapters.round SPEC` with this interpreter."""

import os
from importlib.resources import files
from pathlib import Path

from configs.round import RoundSettings
from daemon.runtime.process_group import PYTHON


def launch_command(settings: RoundSettings, spec: Path) -> list[str]:
    """Return the command with which Accelerate starts one process or many.

    With `round.advanced.accelerate_config` that file decides about processes and precision, and mfmd sets only threads.
    Otherwise mfmd's own file is named, or the user's default_config.yaml would be read.
    """
    flags = ["--num_cpu_threads_per_process", str(settings.advanced.threads or _threads(settings.processes))]
    if settings.advanced.accelerate_config is not None:
        flags += ["--config_file", str(settings.advanced.accelerate_config)]
    else:
        flags += ["--config_file", str(files("configs") / "accelerate.yaml")]
        flags += ["--num_processes", str(settings.processes), "--num_machines", "1", "--dynamo_backend", "no"]
        flags += ["--mixed_precision", settings.mixed_precision]
        if settings.processes > 1:
            flags.append("--multi_gpu")
        elif settings.device == "cpu":
            flags.append("--cpu")
    launch = [*PYTHON, "-m", "accelerate.commands.launch"]  # without the other commands: it starts 0.8 s sooner
    return [*launch, *flags, "-m", "adapters.round", str(spec)]


def _threads(processes: int) -> int:
    """Give each process its share of the cores; the launcher's default is one thread."""
    return max(1, len(os.sched_getaffinity(0)) // processes if hasattr(os, "sched_getaffinity") else 1)
