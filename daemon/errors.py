"""Errors of the daemon room. `code` is stable (docs/reference/errors.md); `exit_code` is the command's exit status."""

import errno


class DaemonError(Exception):
    """The daemon cannot do what was asked; the message says what happened and what to do."""

    code = "daemon"
    exit_code = 1


class AddressInUse(DaemonError):
    """The control plane's address cannot be bound."""

    code = "address_in_use"


class RoundRunning(DaemonError):
    """A round is already running; only one runs at a time."""

    code = "round_running"
    exit_code = 4


class NotEnoughFrames(DaemonError):
    """The buffer holds fewer frames than `schedule.min_frames`, or none to train on or to score on."""

    code = "not_enough_frames"


class FitMismatch(NotEnoughFrames):
    """Frames are made otherwise than the serving version sees images, so a round may use none of them."""

    code = "fit_mismatch"


class Stopping(DaemonError):
    """The daemon is stopping and starts no new work."""

    code = "stopping"


class InvalidHttp(DaemonError):
    """What a client sent to a plane is not an HTTP/1 request that it takes."""

    code = "invalid_http"


class ShuttingDown(DaemonError):
    """A plane is stopping, and the rest of a request has not come."""

    code = "shutting_down"


class TooManyConnections(DaemonError):
    """A plane has as many connections as it may have, and every one is busy."""

    code = "too_many_connections"


class PublishFailed(DaemonError):
    """An export for a mirror failed or took too long; the message has its last line. The publisher tries again."""

    code = "publish_failed"


class NotifyFailed(DaemonError):
    """A webhook did not take a message; the message here has its host and the reason. It is tried again."""

    code = "notify_failed"


def code_of(error: BaseException) -> str:
    """Return the stable code of `error` (docs/reference/errors.md); `unexpected` for any other exception."""
    code = getattr(error, "code", None)
    if isinstance(code, str):
        return code
    return "system" if isinstance(error, OSError) or _remedy(error) else "unexpected"


FULL = (errno.ENOSPC, errno.EDQUOT)
"""What the system says when the disk, or this user's part of it, is full."""


THREADS = "raise the limit of processes and threads (ulimit -u, the pids of a container), or of memory (ulimit -v)"
REMEDIES = {
    **dict.fromkeys(FULL, "free space on that disk, then retry"),
    **dict.fromkeys((errno.EMFILE, errno.ENFILE), "raise the limit of open files (ulimit -n)"),
    **dict.fromkeys((errno.EACCES, errno.EPERM), "run mfmd as the user who owns it, or change the owner"),
    errno.EROFS: "mount it for writing, or name another folder",
    errno.EAGAIN: THREADS,
}


def describe_error(error: BaseException) -> str:
    """Return the error's message, with what to do where the system has no more of something, or forbids it."""
    remedy = _remedy(error)
    return f"{str(error) or type(error).__name__}; {remedy}" if remedy else str(error)


def _remedy(error: BaseException) -> str | None:
    if isinstance(error, OSError):
        return REMEDIES.get(error.errno or 0)
    if isinstance(error, MemoryError):
        return "raise the limit of memory (ulimit -v, or the container's)"
    return THREADS if isinstance(error, RuntimeError) and str(error) == "can't start new thread" else None
