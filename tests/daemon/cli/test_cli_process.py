"""What a process sets right before any command: streams, signals, paths of modules, orphans as first of a container."""

import errno
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from daemon.cli.options import read_settings, running_settings
from daemon.cli.process import without_optimize
from daemon.errors import code_of, describe_error
from daemon.exit_codes import ExitCode

ROOT = Path(__file__).parents[3]


def _start(code: str, *arguments: str, shell: str = 'exec "$@"', path: str = str(ROOT)) -> subprocess.Popen[str]:
    command = ["sh", "-c", shell, "sh", sys.executable, "-P", "-c", code, *arguments]
    environment = os.environ | {"PYTHONPATH": path, "TORCH_LOGS": "", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


STATE = """
import json, os, signal, sys
from daemon.cli.process import prepare
prepare()
print("a log line")
seen = {
    "streams": [os.readlink(f"/proc/self/fd/{number}") for number in range(3)],
    "ignored": [name for name in ("SIGTERM", "SIGCHLD") if signal.getsignal(getattr(signal, name)) == signal.SIG_IGN],
    "blocked": [int(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, [])],
    "safe": os.environ["PYTHONSAFEPATH"],
    "path": os.environ["PYTHONPATH"],
    "empty": [name for name in ("TORCH_LOGS", "CUDA_VISIBLE_DEVICES") if os.environ.get(name) == ""],
}
with open(sys.argv[1], "w") as file:
    json.dump(seen, file)
"""


def test_a_process_started_in_an_odd_state_sets_itself_right(tmp_path: Path) -> None:
    """All at once: closed streams, blocked and ignored signals, the current directory among the paths of modules."""
    answer = tmp_path / "seen.json"
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGHUP})
    try:
        shell = "trap '' TERM CHLD; exec \"$@\" <&- >&- 2>&-"
        process = _start(STATE, str(answer), shell=shell, path=f":{ROOT}:")
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    process.communicate(timeout=60)
    assert process.returncode == 0
    seen = json.loads(answer.read_text())
    assert seen == {
        "streams": ["/dev/null"] * 3, "ignored": [], "blocked": [], "safe": "1", "path": str(ROOT),
        "empty": ["CUDA_VISIBLE_DEVICES"],
    }  # fmt: skip


FIRST = """
import ctypes, os, signal, subprocess, sys, time
import psutil
ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER: orphans come here, as to the first of a container
from daemon.cli.process import stay_as_init
stay_as_init()
signal.signal(signal.SIGTERM, lambda *_: sys.exit(5))
orphan = "import time; time.sleep(0.2)"
launcher = f"import subprocess, sys; subprocess.Popen([sys.executable, '-S', '-c', {orphan!r}]); print(); input()"
for _ in range(2):
    child = subprocess.Popen([sys.executable, "-S", "-c", launcher], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    child.stdout.readline()
    child.kill()
    assert child.wait() == -9
end = time.monotonic() + 20
while len(left := psutil.Process(os.getppid()).children()) > 1:
    assert time.monotonic() < end, left
    time.sleep(0.02)
print("reaped", flush=True)
os.kill(os.getpid(), signal.SIGKILL) if sys.argv[1] == "killed" else signal.pause()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="containers")
@pytest.mark.parametrize(("end", "status"), [("stopped", 5), ("killed", 128 + signal.SIGKILL)])
def test_the_first_process_of_a_container_reaps_orphans_and_ends_like_its_command(end: str, status: int) -> None:
    process = _start(FIRST, end)
    assert process.stdout is not None
    assert process.stdout.readline() == "reaped\n"
    if end == "stopped":
        process.send_signal(signal.SIGTERM)
    assert process.wait(60) == status
    process.stdout.close()


OPTIMIZED = """
import sys
from daemon.cli.process import prepare
prepare()
def documented():
    "kept"
print(sys.flags.optimize, documented.__doc__, sys.argv[1:])
"""


@pytest.mark.parametrize(
    ("flags", "variable"), [(["-OO"], ""), (["-O", "-O"], ""), (["-bOOP"], ""), ([], "2"), (["-OO"], "2"), ([], "x")]
)
def test_docstrings_are_kept_however_python_was_told_to_remove_them(flags: list[str], variable: str) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONOPTIMIZE": variable}
    command = [sys.executable, *flags, "-W", "default", "-c", OPTIMIZED, "-OO"]
    answer = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert answer.returncode == 0, answer.stderr
    level, word, *rest = answer.stdout.split()
    assert int(level) < 2 and word == "kept" and rest == ["['-OO']"], "the program's own arguments stay"


@pytest.mark.parametrize(
    ("arguments", "kept"),
    [
        (["-OO", "-m", "daemon.cli", "-OO"], ["-m", "daemon.cli", "-OO"]),
        (["-X", "dev", "-OO", "mfmd", "run"], ["-X", "dev", "mfmd", "run"]),
        (["-Xfrozen_modules", "-WError::O", "-OP", "/bin/mfmd"], ["-Xfrozen_modules", "-WError::O", "-P", "/bin/mfmd"]),
        (["mfmd", "-O"], ["mfmd", "-O"]),
    ],
)
def test_only_the_interpreters_own_flag_is_taken_away(arguments: list[str], kept: list[str]) -> None:
    assert without_optimize(arguments) == kept


def test_a_command_works_in_a_folder_that_was_deleted(tmp_path):
    gone = tmp_path / "gone"
    gone.mkdir()
    code = "import os, sys; os.rmdir(sys.argv[1]); import daemon.cli.process as p; p.prepare(); print(os.getcwd())"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    command = [sys.executable, "-P", "-c", code, str(gone)]
    done = subprocess.run(command, cwd=gone, env=environment, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout.strip()) == (0, "/"), done.stderr


def test_temporary_files_go_to_the_state_directory_where_the_system_takes_none(config, settings, monkeypatch):
    """As in a read-only container, where torch ends the inference plane and every round without such a folder."""

    def none_usable() -> str:
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found")

    monkeypatch.setenv("TMPDIR", "/nowhere")
    read_settings(config)
    assert os.environ["TMPDIR"] == "/nowhere", "Python takes another one by itself"
    monkeypatch.setattr(tempfile, "gettempdir", none_usable)
    for read in (read_settings, running_settings):
        read(config)
        assert Path(os.environ["TMPDIR"]) == settings.state / "run/tmp" and (settings.state / "run/tmp").is_dir()


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        (RuntimeError("can't start new thread"), "ulimit -u"), (BlockingIOError(errno.EAGAIN, "fork"), "ulimit -u"),
        (OSError(errno.EMFILE, "open"), "ulimit -n"), (MemoryError(), "MemoryError; raise the limit of memory"),
        (OSError(errno.ENOSPC, "write"), "free space"),
        (OSError(errno.EACCES, "open"), "run mfmd as the user who owns it"), (OSError(errno.EROFS, "open"), "mount it"),
    ],
)  # fmt: skip
def test_what_the_system_refuses_is_no_bug_and_has_a_remedy(error: Exception, remedy: str) -> None:
    assert code_of(error) == "system" and remedy in describe_error(error)
    assert code_of(RuntimeError("other")) == "unexpected"


def test_a_hang_up_during_the_start_ends_nothing(tmp_path: Path) -> None:
    """As by `systemctl reload` right after a start. A FIFO tells how far the start is."""
    config = tmp_path / "mfmd.yaml"
    os.mkfifo(config)
    command = [sys.executable, "-P", "-m", "daemon.cli", "run", "--config", str(config)]
    process = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE, text=True)
    with config.open("w", encoding="utf-8") as file:
        process.send_signal(signal.SIGHUP)
        file.write("classes: 3")
    _, said = process.communicate(timeout=60)
    assert process.returncode == ExitCode.USAGE and "classes" in said, (process.returncode, said)


def test_the_exit_code_stays_where_nothing_can_be_said() -> None:
    code = "import sys; from daemon.cli import main; sys.exit(main(['status', '--config', 'nowhere']))"
    process = _start(code, shell='exec "$@" 2>/dev/full')
    process.communicate(timeout=60)
    assert process.returncode == ExitCode.USAGE
