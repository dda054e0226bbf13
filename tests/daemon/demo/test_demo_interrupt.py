"""`mfmd demo` stopped in the middle leaves nothing behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from daemon.exit_codes import ExitCode


def test_sigterm_removes_the_state_and_ends_with_130(tmp_path: Path) -> None:
    demo = subprocess.Popen(
        [sys.executable, "-m", "daemon.cli", "demo", "--out", str(tmp_path / "out")],
        env=os.environ | {"TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("mfmd-demo-*/source/images/*.png")):
        assert demo.poll() is None, demo.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    demo.send_signal(signal.SIGTERM)
    output, _ = demo.communicate(timeout=60)
    assert demo.returncode == ExitCode.INTERRUPTED, output
    assert "Interrupted" in output
    assert "Traceback" not in output
    assert not list(tmp_path.glob("mfmd-demo-*"))
    assert not (tmp_path / "out").exists()
