"""Which tests are slow, by measurement: `make durations` writes `slow.txt`, and what it names gets the marker `slow`.

A list in a file, not marks by hand: nobody has to guess, and the next measurement corrects it.
"""

from pathlib import Path

import pytest

LIST = Path(__file__).with_name("slow.txt")
LIMIT = 0.2
"""Tests that take longer, with their fixtures, are slow (seconds on a quiet machine)."""


class Durations:
    """Adds up what each test takes and writes the list at the end of a whole run."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Set-up, test and tear-down; under xdist the controller hears of all of them."""
        self._seconds[report.nodeid] = self._seconds.get(report.nodeid, 0.0) + report.duration

    def pytest_sessionfinish(self) -> None:
        """Names in order, so that a later list differs where the times do."""
        slow = sorted(name for name, seconds in self._seconds.items() if seconds > LIMIT)
        LIST.write_text("".join(f"{self._seconds[name]:.1f} {name}\n" for name in slow), encoding="utf-8")


def listed() -> set[str]:
    """Node ids of the slow tests; empty before the first measurement."""
    if not LIST.exists():
        return set()
    return {line.partition(" ")[2] for line in LIST.read_text(encoding="utf-8").splitlines()}
