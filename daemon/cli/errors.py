"""Turn any error into one line on stderr and an exit code; tracebacks only at log level debug."""

import os
import sys
import traceback
from contextlib import suppress

from daemon.exit_codes import ExitCode

LEVEL_VARIABLE = "MFMD_LOG__LEVEL"
"""Environment variable behind `--log-level`; children of the command inherit it."""


def report(error: BaseException) -> int:
    """Print `error` as `error[code]: message` on stderr and return the exit code it stands for."""
    from daemon.errors import code_of

    if os.environ.get(LEVEL_VARIABLE) == "debug":
        traceback.print_exception(error)
    code = code_of(error)
    with suppress(OSError):  # nobody can read it; the exit code tells
        print(f"error[{code}]: {_one_line(error, code)}", file=sys.stderr)
    return exit_code_of(error)


def exit_code_of(error: BaseException) -> int:
    """Return the exit code for `error`: its `exit_code` if it has one, else by its type."""
    own = getattr(error, "exit_code", None)
    if isinstance(own, int):
        return int(own)
    from configs.errors import ConfigError
    from storage.errors import AlreadyRunning, InvalidName, InvalidReason, NoCheckpoint, UnknownVersion

    if isinstance(error, (ConfigError, InvalidName, InvalidReason)):
        return ExitCode.USAGE
    if isinstance(error, AlreadyRunning):
        return ExitCode.ALREADY_RUNNING
    if isinstance(error, (NoCheckpoint, UnknownVersion)):
        return ExitCode.NO_CHECKPOINT
    return ExitCode.FAILURE


def _one_line(error: BaseException, code: str) -> str:
    from daemon.errors import describe_error

    message = " ".join(describe_error(error).split())
    if code != "unexpected":
        return message or type(error).__name__
    return f"{type(error).__name__}: {message} (a bug: run again with --log-level debug and report the traceback)"
