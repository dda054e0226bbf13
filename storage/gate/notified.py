"""`notified.json`: up to where each webhook was told what happened."""

from pydantic import Field

from storage.durable.record import Record


class Told(Record):
    """What one webhook was told."""

    history: int
    """Lines of the registry's history."""
    alarms: int
    """Drift alarms of this state directory."""


class Notified(Record):
    """`notified.json`."""

    told: dict[str, Told] = Field(default_factory=dict)
    """Of each webhook, by a hash of its address."""
