"""Time of `mfmd --help` and `mfmd status`, compared with importing only the libraries that they use.

    python benchmarks/cli_start.py --config mfmd.yaml --turns 15

CPU time (seconds) of whole processes, taking turns. `status` reads the state directory of the configuration.
"""

import argparse
import os
import statistics
import subprocess
import sys
from pathlib import Path

BASELINE = ("-c", "import typer, pydantic_settings, yaml")
"""Commands parse options, read the configuration and check it: less than this no command can take."""


def cpu_seconds(arguments: tuple[str, ...], folder: Path) -> float:
    """Return the CPU time of one Python process; discard its output. Raises RuntimeError if it fails."""
    process = subprocess.Popen([sys.executable, *arguments], cwd=folder, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise RuntimeError(f"{' '.join(arguments)} ended with {process.returncode}")
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    """Print a table: seconds (median, least to most) and the ratio of medians to the baseline."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--turns", type=int, default=15)
    chosen = parser.parse_args()
    folder, name = chosen.config.resolve().parent, chosen.config.name
    commands = {
        "baseline": BASELINE,
        "mfmd --help": ("-m", "daemon.cli", "--help"),
        "mfmd status": ("-m", "daemon.cli", "status", "--json", "--config", name),
    }
    seconds: dict[str, list[float]] = {title: [] for title in commands}
    for _ in range(chosen.turns):
        for title, arguments in commands.items():
            seconds[title].append(cpu_seconds(arguments, folder))
    base = statistics.median(seconds["baseline"])
    for title, taken in seconds.items():
        middle = statistics.median(taken)
        print(f"{title:12}  {middle:.3f} s ({min(taken):.3f}-{max(taken):.3f})  {middle / base:.2f}")


if __name__ == "__main__":
    main()
