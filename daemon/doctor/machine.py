"""The interpreter, torch and the accelerator."""

import json
import os
import platform
import subprocess
import sys

from daemon.doctor.finding import Finding

OLDEST_PYTHON = (3, 11)
OLDEST_TORCH = (2, 11)
PROBE_SECONDS = 120.0
"""Longest wait for torch to import (seconds); a cold disk takes half a minute."""
PROBE = """
import json, torch
gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
print(json.dumps({"torch": torch.__version__, "cuda": torch.version.cuda, "gpus": gpus}))
"""


def examine_machine() -> list[Finding]:
    """Return findings about python, torch and GPU.

    A child imports torch, because the control plane never does.
    """
    findings = [_python()]
    try:
        answer = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, timeout=PROBE_SECONDS)
    except subprocess.TimeoutExpired:
        return [*findings, Finding.fail("torch", f"import took over {PROBE_SECONDS:.0f} s", "check disk and memory")]
    if answer.returncode != 0:
        reason = (answer.stderr.strip().splitlines() or [f"exit status {answer.returncode}"])[-1]
        return [
            *findings,
            Finding.fail("torch", f"cannot be imported: {reason}", "install torch>=2.11 for this python"),
        ]
    seen = json.loads(answer.stdout.strip().splitlines()[-1])
    return [*findings, _torch(seen["torch"]), _accelerator(seen["gpus"], seen["cuda"])]


def _python() -> Finding:
    version = platform.python_version()
    if sys.version_info < OLDEST_PYTHON:
        return Finding.fail("python", f"{version} is too old", "use Python 3.11 or later")
    return Finding.ok("python", f"{version} at {sys.executable}")


def _torch(version: str) -> Finding:
    numbers = tuple(int(part) for part in version.split("+")[0].split(".")[:2])
    if numbers < OLDEST_TORCH:
        return Finding.fail("torch", f"{version} is too old", "install torch>=2.11")
    return Finding.ok("torch", version)


def _accelerator(gpus: list[str], cuda: str | None) -> Finding:
    if gpus:
        return Finding.ok("gpu", f"{len(gpus)} x {gpus[0]}, CUDA {cuda}")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    detail = f"none; {cores} CPU cores, torch built {'for CUDA ' + cuda if cuda else 'without CUDA'}"
    remedy = "fine for *_tiny networks and small frames; larger ones want a GPU, its driver and a CUDA build of torch"
    return Finding.warn("gpu", detail, remedy)
