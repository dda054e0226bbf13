"""The identity of content. On its own, without numpy: what only verifies checkpoints starts faster."""

import hashlib
from pathlib import Path


def digest_of(source: Path | bytes) -> str:
    """Hex SHA-256 of a file's content or of bytes: the identity of an image."""
    if isinstance(source, bytes):
        return hashlib.sha256(source).hexdigest()
    with source.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_in_video(video: str, microseconds: int) -> str:
    """The identity of a frame of the video whose digest is `video`, shown at that time.

    Not of its pixels: what was committed before a crash must be known without decoding it again, and whatever another
    version of the decoder makes of it.
    """
    return hashlib.sha256(f"{video}#{microseconds}".encode()).hexdigest()
