"""One thing that the doctor looked at."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Self


class Level(StrEnum):
    """Severity of a finding."""

    OK = "ok"
    """Correct."""
    WARN = "warn"
    """Works, with a limit worth knowing."""
    FAIL = "fail"
    """Something will not work."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One finding: subject, level, what was seen, and what to do."""

    name: str
    """Stable name of the check, for programs."""
    level: Level
    """How it is."""
    detail: str
    """What was seen, with numbers."""
    remedy: str = ""
    """What to do; empty when all is well."""

    @classmethod
    def ok(cls, name: str, detail: str) -> Self:
        """Report that all is well."""
        return cls(name, Level.OK, detail)

    @classmethod
    def warn(cls, name: str, detail: str, remedy: str) -> Self:
        """Report that it works, with a limit."""
        return cls(name, Level.WARN, detail, remedy)

    @classmethod
    def fail(cls, name: str, detail: str, remedy: str) -> Self:
        """Report that it will not work."""
        return cls(name, Level.FAIL, detail, remedy)
