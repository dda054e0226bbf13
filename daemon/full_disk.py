"""A full disk: nothing is lost and nothing is broken, but somebody must make room."""

import errno

FULL = (errno.ENOSPC, errno.EDQUOT)
"""What the system says when the disk, or this user's part of it, is full."""


def in_words(error: OSError) -> str:
    """The system's own message, and what to do where that is known."""
    return f"{error}; make room on that disk, then do it again" if error.errno in FULL else str(error)
