"""Programs that tests start as children: commands of this Python, without site packages."""

import sys


def python(code: str, *arguments: str) -> list[str]:
    """The command of a program."""
    return [sys.executable, "-S", "-c", code, *arguments]


SLEEP = "import time; time.sleep(600)"
STUBBORN = "import signal, time; signal.signal(15, signal.SIG_IGN); print('ready', flush=True); time.sleep(600)"
PARENT = (
    "import subprocess, sys, time\n"
    "subprocess.Popen([sys.executable, '-S', '-c', sys.argv[1]])\n"
    "time.sleep(float(sys.argv[2]))"
)
