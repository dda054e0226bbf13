"""The interpreter, the four packages of mfmd, torch, the accelerator and the number formats of the CPU."""

import json
import os
import platform
import subprocess
import sys
from importlib.metadata import packages_distributions, version
from importlib.util import find_spec
from pathlib import Path

from configs.settings import Settings
from daemon.doctor.finding import Finding, fail, ok, warn
from daemon.runtime.process_group import PYTHON

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
    findings = [ok("python", f"{platform.python_version()} at {sys.executable}")]
    try:
        answer = subprocess.run([*PYTHON, "-c", PROBE], capture_output=True, text=True, timeout=PROBE_SECONDS)
    except subprocess.TimeoutExpired:
        return [*findings, fail("torch", f"import took over {PROBE_SECONDS:.0f} s", "check disk and memory")]
    if answer.returncode != 0:
        reason = (answer.stderr.strip().splitlines() or [f"exit status {answer.returncode}"])[-1]
        return [*findings, fail("torch", f"cannot be imported: {reason}", "install torch>=2.11 for this python")]
    seen = json.loads(answer.stdout.strip().splitlines()[-1])
    return [*findings, _torch(seen["torch"]), _accelerator(seen["gpus"], seen["cuda"])]


def _torch(version: str) -> Finding:
    numbers = tuple(int(part) for part in version.split("+")[0].split(".")[:2])
    if numbers < OLDEST_TORCH:
        return fail("torch", f"{version} is too old", "install torch>=2.11")
    return ok("torch", version)


def _accelerator(gpus: list[str], cuda: str | None) -> Finding:
    if gpus:
        return ok("gpu", f"{len(gpus)} x {gpus[0]}, CUDA {cuda}")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    detail = f"none; {cores} CPU cores, torch built {'for CUDA ' + cuda if cuda else 'without CUDA'}"
    remedy = "fine for *_tiny networks and small frames; larger ones need a GPU, its driver and a CUDA build of torch"
    return warn("gpu", detail, remedy)


CPU_INFO = Path("/proc/cpuinfo")
FLAGS_OF_BF16 = frozenset({"avx512_bf16", "amx_bf16", "bf16"})
"""What Linux calls it on Intel and AMD, and on ARM."""


def examine_number_formats(settings: Settings, gpu: bool, cpu_info: Path = CPU_INFO) -> list[Finding]:
    """Return a finding when bf16 is configured on a CPU; `gpu`: whether there is one, for `device: auto`."""
    serving, training = settings.serving, settings.round
    formats = (
        ("serving.precision", serving.precision, serving.device),
        ("round.mixed_precision", training.mixed_precision, training.device),
    )
    asked = ", ".join(
        f"{name}: bf16" for name, used, device in formats if used == "bf16" and (device == "cpu" or not gpu)
    )
    flags = _flags(cpu_info)
    if not asked or not flags:
        return []
    if flags & FLAGS_OF_BF16:
        return [ok("bf16", f"this CPU computes in it ({asked})")]
    detail = f"this CPU emulates it, many times slower than float32 ({asked})"
    return [warn("bf16", detail, "use float32 (`no` for a round), or a CPU with AVX512-BF16 or AMX, or a GPU")]


def _flags(cpu_info: Path) -> set[str]:
    try:
        lines = cpu_info.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return set()
    names = ("flags", "Features")
    return next((set(line.partition(":")[2].split()) for line in lines if line.startswith(names)), set())


PACKAGES = ("configs", "storage", "adapters", "daemon")


def examine_packages() -> list[Finding]:
    """Report packages that another project hides or overwrites, by their files.

    PyPI's python-daemon installs `daemon` and PyPI's adapters installs `adapters`. Ours lie beside this file's package.
    """
    remedy = "install mfmd in a separate environment"
    ours, places = Path(__file__).resolve().parents[2], {name: _origin(name) for name in PACKAGES}
    hidden = {name: path for name, path in places.items() if path is None or path.resolve().parents[1] != ours}
    if hidden:
        detail = "; ".join(f"{path or 'nothing'} is found before {ours / name}" for name, path in hidden.items())
        return [fail("packages", f"another project hides packages of mfmd: {detail}", remedy)]
    owners = packages_distributions()
    others = [(owner, name) for name in PACKAGES for owner in sorted(set(owners.get(name, ())) - {"mfmd"})]
    if others:
        detail = "; ".join(f"{owner} {version(owner)} installs {name} too, at {places[name]}" for owner, name in others)
        return [fail("packages", f"another project may overwrite files of mfmd: {detail}", remedy)]
    return [ok("packages", f"all in {ours}")]


def _origin(name: str) -> Path | None:
    """Return the `__init__.py` of the package that an import would find, or its folder if it has none."""
    spec = find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        return None if spec is None or spec.origin is None else Path(spec.origin)
    folder = Path(next(iter(spec.submodule_search_locations)))
    return folder / "__init__.py"
