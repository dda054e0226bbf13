"""Frozen records that durable JSON files hold."""

from pydantic import BaseModel, ConfigDict


class Record(BaseModel):
    """A frozen record that is written as JSON; unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class FileHash(Record):
    """One file of a version."""

    sha256: str
    """Hex SHA-256 of the content."""
    size: int
    """Size (bytes)."""
