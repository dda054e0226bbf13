"""How a candidate agreed with the version that served, on live requests: a file that the gate can read."""

from pathlib import Path

from pydantic import ValidationError

from storage import durable
from storage.errors import StorageError
from storage.manifest import Record


class ShadowRecord(Record):
    """Agreement of a candidate with one serving version; counts begin anew when another version serves."""

    candidate: int
    """The version that ran in the shadow."""
    serving: int
    """The version whose answers were given."""
    images: int = 0
    """Images that both ran on."""
    pixels: int = 0
    """Pixels of those."""
    same: int = 0
    """Pixels with the same label from both."""
    since: float
    """Unix time of the first image (seconds)."""
    updated: float
    """Unix time of the last image (seconds)."""

    @property
    def agreement(self) -> float:
        """Share of pixels with the same label; 0 before the first."""
        return self.same / self.pixels if self.pixels else 0.0


def read_shadow(path: Path) -> ShadowRecord | None:
    """The record in a file; none when there is none. Raises StorageError when it cannot be read."""
    try:
        return ShadowRecord.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError as error:
        raise StorageError(f"{path}: not a shadow record: {error.errors()[0]['msg']}; remove the file") from error


def write_shadow(path: Path, record: ShadowRecord) -> None:
    """Replace the record in a file, durably."""
    durable.make_directory(path.parent)
    durable.write_record(path, record)
