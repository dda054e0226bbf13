"""Frozen records that durable JSON files hold."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from storage.errors import StorageError


class Record(BaseModel):
    """A frozen record that is written as JSON; unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class FileHash(Record):
    """One file of a version."""

    sha256: str
    """Hex SHA-256 of the content."""
    size: int
    """Size (bytes)."""


AnyRecord = TypeVar("AnyRecord", bound=Record)


def read_record(path: Path, kind: type[AnyRecord], remedy: str = "") -> AnyRecord | None:
    """Return the record in a file; None when it is missing. Raises StorageError, with `remedy`, when it is damaged."""
    try:
        return kind.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError as error:
        raise StorageError(f"{path}: not a {kind.__name__}: {error.errors()[0]['msg']}{remedy}") from error


def lines_of(path: Path, tail: int | None = None) -> list[bytes]:
    """Return the lines of a file, or those in its last `tail` bytes, the first perhaps cut; none when it is missing."""
    if not path.exists():
        return []
    with path.open("rb") as file:
        if tail is not None:
            file.seek(max(0, path.stat().st_size - tail))
        return file.read().splitlines()


def parsed(lines: Iterable[bytes], kind: type[AnyRecord]) -> Iterator[AnyRecord]:
    """Yield the records in lines of JSON. A line that does not parse was truncated by a crash: it is omitted."""
    for line in lines:
        try:
            yield kind.model_validate_json(line)
        except ValidationError:
            continue
