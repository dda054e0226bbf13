"""Exit codes of every command; documented for users in `docs/reference/commands.md`."""

from enum import IntEnum


class ExitCode(IntEnum):
    """What a command's exit status means."""

    OK = 0
    """The command did what it says."""
    FAILURE = 1
    """Something went wrong; one line on stderr says what and what to do."""
    USAGE = 2
    """Wrong arguments or a wrong configuration."""
    NOT_ACCEPTED = 3
    """The work ran, but no candidate was accepted (`adapt`: rejected or inconclusive; `demo`: no gain to show)."""
    ALREADY_RUNNING = 4
    """Another daemon or round holds this state directory."""
    NO_CHECKPOINT = 5
    """No checkpoint serves yet, or the version does not exist."""
    INTERRUPTED = 130
    """Ctrl-C."""
