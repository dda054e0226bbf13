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
    if arguments is None:
        from daemon.cli.process import prepare

        prepare()
    from daemon.cli.app import app
    from daemon.cli.errors import report

    try:
        with _private_files():
            app(in_order(sys.argv[1:] if arguments is None else arguments), prog_name="mfmd")
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except Exception as error:  # noqa: BLE001  the outermost boundary: whatever happened becomes a line and a code
        return report(error)
    finally:
        _drop_what_cannot_be_said()
    return 0


def _drop_what_cannot_be_said() -> None:
    """Keep the command's exit code where its log cannot be written: Python makes it 120."""
    try:
        sys.stderr.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


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


def in_order(arguments: Sequence[str]) -> list[str]:
    """Move the options of every command to where typer takes them: `--log-level` first, the others last.

    The others are moved from before the command's name, and from inside a name of two words.
    """
    end = arguments.index("--") if "--" in arguments else len(arguments)
    words, rest = list(arguments[:end]), list(arguments[end:])
    first: list[str] = []
    last: list[str] = []
    for index, word in enumerate(words):
        if word == GLOBAL_OPTION or word.startswith(f"{GLOBAL_OPTION}="):
            first, words[index:] = _split(words[index:], 1 if "=" in word else 2)
            break
    for place in (0, 1):
        while len(words) > place and (size := _size(words[place])):
            moved, words[place:] = _split(words[place:], size)
            last += moved
    return [*first, *words, *last, *rest]


def _size(word: str) -> int:
    """Return how many words an option takes that may stand before the command's name; 0 for every other word."""
    if word in ("-c", "--config"):
        return 2
    return int(word == "--json" or word.startswith("--config=") or (word.startswith("-c") and word != "-c"))


def _split(words: list[str], size: int) -> tuple[list[str], list[str]]:
    return words[:size], words[size:]
