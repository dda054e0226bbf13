"""How long a stop may take: the inference plane's requests, and what the daemon started."""

REQUESTS_SECONDS = 30
"""Longest wait of the inference plane for requests in flight at its end (seconds)."""
CHILD_SECONDS = 8.0
"""Time between SIGTERM and SIGKILL for what the daemon started (seconds)."""
PLANE_SECONDS = REQUESTS_SECONDS + CHILD_SECONDS
"""The same for the inference plane: its requests first, then its threads. With none in flight it ends in about 1 s."""
