"""Whether this CPU computes in the number format that the settings ask for, or has it emulated."""

from pathlib import Path

from configs.settings import Settings
from daemon.doctor.finding import Finding

CPU_INFO = Path("/proc/cpuinfo")
FLAGS_OF_BF16 = frozenset({"avx512_bf16", "amx_bf16", "bf16"})
"""What Linux calls it on Intel and AMD, and on ARM."""


def examine_number_formats(settings: Settings, gpu: bool, cpu_info: Path = CPU_INFO) -> list[Finding]:
    """Return a finding when bf16 is configured on a CPU; `gpu`: whether there is one, for `device: auto`."""
    asked = ", ".join(
        f"{name}: bf16"
        for name, number_format, device in (
            ("serving.precision", settings.serving.precision, settings.serving.device),
            ("round.mixed_precision", settings.round.mixed_precision, settings.round.device),
        )
        if number_format == "bf16" and (device == "cpu" or not gpu)
    )
    flags = _flags(cpu_info)
    if not asked or not flags:
        return []
    if flags & FLAGS_OF_BF16:
        return [Finding.ok("bf16", f"this CPU computes in it ({asked})")]
    detail = f"this CPU has it emulated, many times slower than float32 ({asked})"
    return [Finding.warn("bf16", detail, "take float32 (`no` for a round), or a CPU with AVX512-BF16 or AMX, or a GPU")]


def _flags(cpu_info: Path) -> set[str]:
    """Features of the first CPU; empty where the system does not tell."""
    try:
        lines = cpu_info.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return set()
    names = ("flags", "Features")
    return next((set(line.partition(":")[2].split()) for line in lines if line.startswith(names)), set())
