"""Frozen records that durable JSON files hold."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from storage.errors import NewerRecord, StorageError

FORMAT = "schema_version"
"""Key of a file's format number; a file without it has format 1, and is written so."""
USE_NEWER = "use the mfmd that wrote it"


class Record(BaseModel):
    """A frozen record that is written as JSON; unknown keys are refused."""

    newest_format: ClassVar[int] = 1
    """Newest format that this mfmd reads. A kind of file whose fields change gets a higher one, and writes it."""
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class FileHash(Record):
    """One file of a version."""

    sha256: str
    """Hex SHA-256 of the content."""
    size: int
    """Size (bytes)."""


AnyRecord = TypeVar("AnyRecord", bound=Record)


def validated(data: bytes, kind: type[AnyRecord], where: Path) -> AnyRecord:
    """Return the record in the bytes of a file or line. Raises NewerRecord, naming `where`, or ValidationError.

    Its format number is what decides. Fields that only a newer mfmd can know count as one, whatever the number.
    """
    try:
        return kind.model_validate_json(data)
    except ValidationError as error:
        values = _object_in(data)
        found, unknown = values.pop(FORMAT, 1), {problem["type"] for problem in error.errors()} == {"extra_forbidden"}
        if type(found) is int and found > kind.newest_format:
            raise NewerRecord(
                f"{where}: a {kind.__name__} of format {found}, this mfmd reads up to {kind.newest_format}; "
                f"nothing is damaged: {USE_NEWER}{_writer(values)}"
            ) from error
        fields = [".".join(map(str, problem["loc"])) for problem in error.errors() if problem["loc"] != (FORMAT,)]
        if unknown and not fields and type(found) is int:
            return kind.model_validate(values)  # it says 1, which no file has to
        if unknown and fields:
            raise NewerRecord(
                f"{where}: a {kind.__name__} with unknown fields ({', '.join(fields[:3])}), which a newer mfmd, or "
                f"somebody by hand, wrote: {USE_NEWER}{_writer(values)}, or remove the fields"
            ) from error
        raise


def _object_in(data: bytes) -> dict[str, Any]:
    try:
        values = json.loads(data)
    except ValueError:
        return {}
    return values if isinstance(values, dict) else {}


def _writer(values: dict[str, Any]) -> str:
    """Return the version of mfmd that a manifest names."""
    libraries = values.get("libraries")
    return f" ({libraries['mfmd']})" if isinstance(libraries, dict) and "mfmd" in libraries else ""


def read_record(path: Path, kind: type[AnyRecord], remedy: str = "") -> AnyRecord | None:
    """Return the record in a file; None when it is missing.

    Raises NewerRecord when a newer mfmd wrote it, StorageError, with `remedy`, when it is damaged.
    """
    try:
        return validated(path.read_bytes(), kind, path)
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


def parsed(lines: Iterable[bytes], kind: type[AnyRecord], where: Path) -> Iterator[AnyRecord]:
    """Yield the records in lines of JSON. A line that does not parse was truncated by a crash: it is omitted.

    Raises NewerRecord, naming the file `where`, for a line of a newer mfmd.
    """
    for line in lines:
        try:
            yield validated(line, kind, where)
        except ValidationError:
            continue
