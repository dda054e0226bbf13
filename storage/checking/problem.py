"""One problem of a state directory and its repair, and what all checks share."""

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from storage.buffer.catalog import Catalog
from storage.durable.record import USE_NEWER
from storage.errors import NewerRecord
from storage.layout import StateLayout

REPAIR = "stop mfmd run, then mfmd check --repair"
RESTORE = "stop the daemon and restore the buffer folder from a backup"

ERRORS = frozenset(
    {
        "catalog_missing", "catalog_schema", "catalog_damaged", "catalog_index", "frame_numbers", "digest_missing",
        "file_without_frame", "lease_without_frame", "valid_region", "slots_missing", "pixels_missing",
        "pixels_unreadable", "frame_missing", "frame_damaged", "observations_damaged", "version_damaged",
        "pruned_damaged", "ref_damaged", "ref_dangling", "serving_missing", "serving_damaged", "round_damaged",
        "round_version", "training_state", "source_damaged", "unreadable", "record_newer",
        "conditions_damaged", "condition_version", "gate_record_damaged", "format_damaged",
        "pause_damaged",
    }
)  # fmt: skip
"""Codes of broken guarantees; a restart of the daemon does not repair them."""
LEFTOVERS = frozenset(
    {
        "unfinished", "shard_orphan", "lease_stale", "observation_orphan", "history_torn", "source_old",
        "golden_missing", "kept_stale", "comparison_stale", "base_unused",
    }
)  # fmt: skip
"""Codes of leftovers of a crash: harmless, and their owner removes them at the next start."""


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
    repair: Callable[[], object] | None = field(default=None, repr=False, compare=False)
    """Repairs it; only under the state directory's lock. None: repair is not possible."""

    def __post_init__(self) -> None:
        if self.code not in ERRORS | LEFTOVERS:
            raise ValueError(f"{self.code}: not a code of docs/how-to/check.md")
        object.__setattr__(self, "detail", self.detail.removeprefix(f"{self.path}: "))  # errors name their file too

    @property
    def severity(self) -> Literal["error", "leftover"]:
        """Return whether a guarantee is broken, or a leftover remains."""
        return "leftover" if self.code in LEFTOVERS else "error"

    @property
    def repairable(self) -> bool:
        """Return whether `mfmd check --repair` repairs it."""
        return self.repair is not None


def newer(path: Path, error: NewerRecord) -> Problem:
    """Return the finding of a file that a newer mfmd wrote: no damage, so nothing repairs it."""
    return Problem("record_newer", path, str(error), USE_NEWER)


@dataclass(frozen=True, slots=True)
class Scope:
    """What to check, and how thoroughly."""

    layout: StateLayout
    read_data: bool
    """Also read every pixel and hash every weight."""


def change(path: Path, *statements: str, values: Sequence[object] = ()) -> None:
    """Run statements on a catalog in one durable transaction, each with the same `values`. Raises StorageError."""
    with closing(Catalog.open(path, writable=True)) as catalog, catalog.transaction() as connection:
        for statement in statements:
            connection.execute(statement, values)
