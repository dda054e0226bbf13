"""Identity of content. It imports no numpy, so code that only verifies checkpoints starts faster."""

import hashlib
from pathlib import Path


def short(digest: str) -> str:
    """Return the digits of a digest that name content in logs and in the header of an answer: the first twelve."""
    return digest[:12]


def digest_of(source: Path | bytes) -> str:
    """Return the hex SHA-256 of a file's content or of bytes: the identity of an image."""
    if isinstance(source, bytes):
        return hashlib.sha256(source).hexdigest()
    with source.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
