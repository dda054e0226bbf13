"""Why the last round that was called for could not begin: `refusal.json`; one writer, the daemon."""

from storage.durable.record import Record


class Refusal(Record):
    """`refusal.json`; gone once a round begins."""

    at: float
    """When it was refused (Unix, seconds)."""
    code: str = "not_enough_frames"
    """Stable code of the error."""
    reason: str
    """What happened and what to do, in one sentence."""
