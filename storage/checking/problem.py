"""One problem of a state directory, and its repair."""

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from storage.layout import StateLayout


class Severity(StrEnum):
    """Effect of a problem on the promise of the buffer and the registry."""

    ERROR = "error"
    """A guarantee is broken; a restart of the daemon does not repair it."""
    LEFTOVER = "leftover"
    """A leftover of a crash: harmless, and its owner removes it at the next start."""


ERRORS = frozenset(
    {
        "catalog_missing", "catalog_schema", "catalog_damaged", "catalog_index", "frame_numbers", "digest_missing",
        "file_without_frame", "lease_without_frame", "valid_region", "slots_missing", "pixels_missing",
        "pixels_unreadable", "frame_missing", "frame_damaged", "observations_damaged", "version_damaged",
        "pruned_damaged", "ref_damaged", "ref_dangling", "serving_missing", "serving_damaged", "round_damaged",
        "round_version", "training_state", "source_damaged", "unreadable",
    }
)  # fmt: skip
"""Codes of errors."""
LEFTOVERS = frozenset({"unfinished", "shard_orphan", "lease_stale", "observation_orphan", "history_torn", "source_old"})
"""Codes of leftovers."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One finding of `check_state`."""

    code: str
    """Stable word (docs/how-to/check.md)."""
    path: Path
    """File or folder of the problem."""
    detail: str
    """What is wrong with it."""
    remedy: str
    """What to do."""
    mend: Callable[[], None] | None = field(default=None, repr=False, compare=False)
    """Repairs it; only under the state directory's lock. None: repair is not possible."""

    def __post_init__(self) -> None:
        if self.code not in ERRORS | LEFTOVERS:
            raise ValueError(f"{self.code}: not a code of docs/how-to/check.md")

    @property
    def severity(self) -> Severity:
        """Return whether a guarantee is broken, or a leftover remains."""
        return Severity.LEFTOVER if self.code in LEFTOVERS else Severity.ERROR

    @property
    def repairable(self) -> bool:
        """Return whether `mfmd check --repair` repairs it."""
        return self.mend is not None


@dataclass(frozen=True, slots=True)
class Scope:
    """What to check, and how thoroughly."""

    layout: StateLayout
    """The state directory."""
    read_data: bool
    """Also read every pixel and hash every weight."""
