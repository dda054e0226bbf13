"""One thing that the doctor looked at."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Self


class Level(StrEnum):
    """How good or bad it is."""

    OK = "ok"
    """As it should be."""
    WARN = "warn"
    """Works, with a limit worth knowing."""
    FAIL = "fail"
    """Something will not work."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What was looked at, how it is, and what to do."""

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
        """All is well."""
        return cls(name, Level.OK, detail)

    @classmethod
    def warn(cls, name: str, detail: str, remedy: str) -> Self:
        """It works, with a limit."""
        return cls(name, Level.WARN, detail, remedy)

    @classmethod
    def fail(cls, name: str, detail: str, remedy: str) -> Self:
        """It will not work."""
        return cls(name, Level.FAIL, detail, remedy)
