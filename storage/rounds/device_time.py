"""How long rounds used a device: `device_time.json`; one writer, the daemon. It outlives round folders."""

from pathlib import Path

from storage import durable
from storage.durable.record import Record, read_record

DAY = 86_400.0
"""The budget is that of the last 24 hours (seconds)."""
MOST = 2_000
"""Most rounds that are remembered: one in 43 s of a day."""


class DeviceUse(Record):
    """One round."""

    round: int
    """Its number."""
    ended: float
    """When it ended (Unix, seconds)."""
    seconds: float
    """Wall time of its processes (seconds)."""


class DeviceTime(Record):
    """`device_time.json`."""

    rounds: tuple[DeviceUse, ...] = ()
    """Rounds of the last day, oldest first."""


def read_uses(path: Path) -> tuple[DeviceUse, ...]:
    """Return the remembered rounds. Raises StorageError when the file is damaged."""
    return (read_record(path, DeviceTime, f"; remove {path}") or DeviceTime()).rounds


def joined(*known: tuple[DeviceUse, ...]) -> tuple[DeviceUse, ...]:
    """Return the rounds of several lists, each once, the newest `MOST`, by number."""
    found = {item.round: item for items in known for item in items}
    return tuple(found[number] for number in sorted(found))[-MOST:]


def write_uses(path: Path, uses: tuple[DeviceUse, ...]) -> None:
    """Replace the file, durably."""
    durable.write_record(path, DeviceTime(rounds=uses))


def counted(uses: tuple[DeviceUse, ...], now: float) -> tuple[DeviceUse, ...]:
    """Return the rounds that count at `now` (Unix, seconds): those of the last day, oldest first.

    A round of the coming day counts too: the clock was set back, and that frees no device. One farther ahead ended
    under a clock that was wrong.
    """
    return tuple(sorted((item for item in uses if abs(now - item.ended) < DAY), key=lambda item: item.ended))
