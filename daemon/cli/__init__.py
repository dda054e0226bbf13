"""The command line: `mfmd`. One file per family of commands; importing it imports no torch and no settings."""

import sys
from collections.abc import Sequence

GLOBAL_OPTION = "--log-level"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code (daemon/exit_codes.py); errors become one line on stderr."""
    from daemon.cli.app import app
    from daemon.cli.errors import report

    try:
        app(_lift_global(list(sys.argv[1:] if arguments is None else arguments)), prog_name="mfmd")
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except Exception as error:  # noqa: BLE001  the outermost boundary: whatever happened becomes a line and a code
        return report(error)
    return 0


def _lift_global(arguments: list[str]) -> list[str]:
    """`arguments` with `--log-level X` moved to the front, so that it may stand after the command's name too."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    for index, argument in enumerate(arguments[:end]):
        if argument.startswith(f"{GLOBAL_OPTION}="):
            return [argument, *arguments[:index], *arguments[index + 1 :]]
        if argument == GLOBAL_OPTION:
            return [*arguments[index : index + 2], *arguments[:index], *arguments[index + 2 :]]
    return arguments
