"""A full disk: nothing is lost and nothing is broken, but somebody must make room."""

import errno

FULL = (errno.ENOSPC, errno.EDQUOT)
"""What the system says when the disk, or this user's part of it, is full."""


def in_words(error: BaseException) -> str:
    """The error's own message, and what to do when the disk is full."""
    full = isinstance(error, OSError) and error.errno in FULL
    return f"{error}; make room on that disk, then do it again" if full else str(error)
