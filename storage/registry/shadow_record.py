"""Agreement of a candidate with the serving version on live requests: files that the gate reads.

`shadow/000042/PLANE.json`: each inference plane on a state directory writes its own, a reader sums them.
"""

from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

from storage import durable
from storage.durable.record import Record, read_record
from storage.errors import StorageError
from storage.registry.files import numbers


class ShadowRecord(Record):
    """Agreement of a candidate with one serving version; counts start again when another version serves."""

    candidate: int
    """The version that ran in the shadow."""
    serving: int
    """The version that answered."""
    images: int = 0
    """Images that both ran on."""
    pixels: int = 0
    """Pixels of those."""
    same: int = 0
    """Pixels with the same label from both."""
    failed: int = 0
    """Images on which the candidate raised an error; not among `images`."""
    since: float
    """Unix time of the first image (seconds)."""
    updated: float
    """Unix time of the last image (seconds)."""

    @property
    def tried(self) -> int:
        """Images that the candidate was run on, with any result."""
        return self.images + self.failed

    @property
    def agreement(self) -> float:
        """Share of pixels with the same label; 0 before the first."""
        return self.same / self.pixels if self.pixels else 0.0


class ShadowRecords:
    """All records of a state directory. A plane writes only under its own name."""

    def __init__(self, root: Path) -> None:
        """Use the folder `shadow` of the state directory, `root`."""
        self.root = root

    def path(self, candidate: int, plane: str) -> Path:
        """Return the file of one plane; no two names share a file, and none leaves the folder."""
        return self._folder(candidate) / f"{quote(plane, safe='')}.json"

    def read(self, candidate: int, plane: str) -> ShadowRecord | None:
        """Return the record of one plane; None before the first image. Raises StorageError when it cannot be read."""
        return read_record(self.path(candidate, plane), ShadowRecord, "; remove the file")

    def write(self, plane: str, record: ShadowRecord) -> None:
        """Replace the record of a plane, durably."""
        path = self.path(record.candidate, plane)
        durable.make_directory(path.parent)
        durable.write_record(path, record)

    def of(self, candidate: int) -> list[ShadowRecord]:
        """Return one record for each serving version that a candidate ran beside, summed over planes.

        An unreadable file counts nothing: its plane starts it again, and too little evidence promotes no candidate.
        """
        sums: dict[int, ShadowRecord] = {}
        for path in sorted(self._folder(candidate).glob("*.json")):
            with suppress(StorageError):
                record = read_record(path, ShadowRecord)
                if record is not None and record.candidate == candidate:
                    known = sums.get(record.serving)
                    sums[record.serving] = _added(known, record) if known else record
        return [sums[serving] for serving in sorted(sums)]

    def total(self, candidate: int, serving: int) -> ShadowRecord | None:
        """Return the sum over all planes of a candidate beside one serving version; None before the first image."""
        return next((record for record in self.of(candidate) if record.serving == serving), None)

    def prune(self, versions: Collection[int]) -> None:
        """Remove the records of versions that are not among `versions`."""
        for candidate in numbers(self.root):
            if candidate not in versions and self._folder(candidate).is_dir():
                durable.retire_directory(self._folder(candidate))

    def _folder(self, candidate: int) -> Path:
        return self.root / f"{candidate:06d}"


def _added(one: ShadowRecord, other: ShadowRecord) -> ShadowRecord:
    counts = {name: getattr(one, name) + getattr(other, name) for name in ("images", "pixels", "same", "failed")}
    times = {"since": min(one.since, other.since), "updated": max(one.updated, other.updated)}
    return one.model_copy(update=counts | times)
