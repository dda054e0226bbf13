"""What a process of mfmd sets right before any command: whatever started it may have left it in an odd state."""

import os
import signal
import sys
from collections.abc import Sequence

FORWARDED = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2}
FIRST = 1
"""Process id of the first process of a container."""
_REMOVES_DOCSTRINGS = 2
"""Level of `sys.flags.optimize` that -OO sets."""


def prepare() -> None:
    """Open missing standard streams, keep docstrings, hear signals, take no module from here, reap orphans.

    The first process of a container stays in here; a child of it goes on.
    """
    _open_streams()
    _leave_deleted_folder()
    keep_docstrings(sys.orig_argv, sys.flags.optimize)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {*FORWARDED, signal.SIGCHLD})
    for number in (signal.SIGTERM, signal.SIGCHLD):  # with SIGCHLD ignored, every child seems to end with status 0
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    os.environ["PYTHONSAFEPATH"] = "1"
    if path := os.environ.get("PYTHONPATH"):  # an empty entry, as in `PYTHONPATH=$UNSET:/lib`, is the current directory
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, path.split(os.pathsep)))
    for name in [name for name, value in os.environ.items() if not value and name.startswith(("TORCH", "PYTORCH_"))]:
        del os.environ[name]  # empty, as a container's manifest leaves it; an empty TORCH_LOGS ends the import of torch
    if os.environ.get("COLUMNS") == "0":  # unknown, as some terminals say it; rich would print nothing
        del os.environ["COLUMNS"]
    if os.getpid() == FIRST:
        stay_as_init()


def stay_as_init() -> None:
    """Go on in a child; stay to pass signals on to it, reap every process, and end with the child's status.

    Processes whose parent was killed become children of a container's first one. Nobody else can reap them.
    """
    heard = {*FORWARDED, signal.SIGCHLD}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, heard)
    child = os.fork()
    if child == 0:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return
    while True:
        came = signal.sigwaitinfo(heard)
        if came.si_signo != signal.SIGCHLD and came.si_code <= 0:  # a terminal sends its own to the child too
            os.kill(child, came.si_signo)
        ended, status = os.waitpid(-1, os.WNOHANG)
        while ended not in (0, child):
            ended, status = os.waitpid(-1, os.WNOHANG)
        if ended == child:
            code = os.waitstatus_to_exitcode(status)
            os._exit(code if code >= 0 else 128 - code)


def _open_streams() -> None:
    """Give the numbers 0 to 2 to the null device where they are closed, or a database may be opened as stdout."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, "w" if number else "r", closefd=False))


def _leave_deleted_folder() -> None:
    """Go to the root folder from a current one that is gone: MKL ends the process when torch is loaded there."""
    try:
        os.getcwd()  # noqa: PTH109 - no path is wanted
    except FileNotFoundError:
        os.chdir("/")


def keep_docstrings(flags: Sequence[str], optimize: int) -> None:
    """Start this program again without `-OO`: transformers builds its models from docstrings, which that removes.

    `flags` is the whole command line of the interpreter. The process stays the same for its parent. Raises SystemExit
    where the flag cannot be taken away.
    """
    if optimize < _REMOVES_DOCSTRINGS:
        return
    kept = without_optimize(flags[1:])
    if kept == [*flags[1:]] and not os.environ.pop("PYTHONOPTIMIZE", None):
        sys.exit("mfmd: python -OO removes docstrings, which transformers needs; start it without -OO")
    os.environ.pop("PYTHONOPTIMIZE", None)
    print("mfmd: starts again without -OO, because transformers needs docstrings", file=sys.stderr, flush=True)
    os.execv(sys.executable, [sys.executable, *kept])


def without_optimize(arguments: Sequence[str]) -> list[str]:
    """Return the interpreter's arguments without `-O`, alone or among other letters; the program's own stay."""
    kept: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        if argument[:1] != "-" or argument[:2] in ("-m", "-c", "--"):
            return [*kept, argument, *rest]
        if argument[:2] in ("-X", "-W"):
            kept += [argument, *([next(rest)] if len(argument) == 2 else [])]
        elif (left := argument.replace("O", "")) != "-":
            kept.append(left)
    return kept
