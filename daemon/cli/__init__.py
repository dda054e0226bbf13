"""The command line: `mfmd`. One file per family of commands; importing it imports no torch and no settings."""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

GLOBAL_OPTION = "--log-level"
PRIVATE = 0o027
"""What the umask takes away at least: all rights of others, and the group's right to write."""
OPERATORS_UMASK = "_MFMD_UMASK"
"""As in `storage.durable.permissions`, which is too heavy for `mfmd --help`."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code (daemon/exit_codes.py); print errors as one line on stderr."""
    from daemon.cli.app import app
    from daemon.cli.errors import report

    try:
        with _private_files():
            app(_lift_global(list(sys.argv[1:] if arguments is None else arguments)), prog_name="mfmd")
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except Exception as error:  # noqa: BLE001  the outermost boundary: whatever happened becomes a line and a code
        return report(error)
    return 0


@contextmanager
def _private_files() -> Iterator[None]:
    """Create files with mode 0640 and directories with mode 0750, or stricter, in this process and its children.

    The umask is set because zarr, SQLite, logs and the processes of a round all obey it.
    """
    umask = os.umask(PRIVATE)
    os.umask(umask | PRIVATE)
    inherited = OPERATORS_UMASK in os.environ
    os.environ.setdefault(OPERATORS_UMASK, f"{umask:o}")
    try:
        yield
    finally:
        os.umask(umask)
        if not inherited:
            del os.environ[OPERATORS_UMASK]


def _lift_global(arguments: list[str]) -> list[str]:
    """Move `--log-level X` to the front, because typer takes it only before the command's name."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    for index, argument in enumerate(arguments[:end]):
        if argument.startswith(f"{GLOBAL_OPTION}="):
            return [argument, *arguments[:index], *arguments[index + 1 :]]
        if argument == GLOBAL_OPTION:
            return [*arguments[index : index + 2], *arguments[:index], *arguments[index + 2 :]]
    return arguments
