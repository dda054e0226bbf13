"""One thing that the doctor looked at."""

from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    """Severity of a finding: correct; works, with a limit worth knowing; will not work."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Finding:
    """One finding; `name` is the stable name of the check, for programs."""

    name: str
    level: Level
    detail: str
    """What was seen, with numbers."""
    remedy: str = ""
    """What to do; empty when all is well."""


def ok(name: str, detail: str) -> Finding:
    """Report that all is well."""
    return Finding(name, Level.OK, detail)


def warn(name: str, detail: str, remedy: str) -> Finding:
    """Report that it works, with a limit."""
    return Finding(name, Level.WARN, detail, remedy)


def fail(name: str, detail: str, remedy: str) -> Finding:
    """Report that it will not work."""
    return Finding(name, Level.FAIL, detail, remedy)
