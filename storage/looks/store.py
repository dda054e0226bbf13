"""Looks: the label map of one frame by one version. The control plane asks, the observer answers.

    state/run/looks/000042-1a2b3c4d-000007-0123456789ab.{ask, png, json}

The control plane holds no tensors, so it leaves an empty `.ask`. The observer writes the label map as a grey PNG, or as
JSON why there is none. The names hold the frame's checksum and the digest of the weights, so an answer never belongs to
another frame or version of the same number. All of it can be made again: it is in no backup, and nothing checks it.
"""

import re
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

from storage import durable
from storage.buffer.catalog_records import FrameRecord
from storage.durable.record import Record, read_record
from storage.errors import StorageError
from storage.registry.manifest import Manifest
from storage.registry.versions import WEIGHTS

KEPT = 256
"""Newest answers that stay."""
KEPT_BYTES = 64 * 2**20
"""Most bytes of answers that stay."""
MOST_WAITING = 32
"""Most looks that wait at a time."""
ASKED_SECONDS = 30.0
"""A look that nobody asked for again since then (seconds) is not answered: its page was closed."""
REFUSED_SECONDS = 60.0
"""How long a refusal holds (seconds): a version may be restored from a backup."""
NAME = re.compile(r"(\d+)-([0-9a-f]{8})-(\d+)-([0-9a-f]{12})")

LookState = Literal[
    "waiting",
    "too_many",
    "observer_off",
    "looks_off",
    "no_buffer",
    "buffer_unusable",
    "frame_gone",
    "frame_damaged",
    "version_gone",
    "version_damaged",
    "failed",
]
"""Why there is no label map: it is being made, may be asked for later, or cannot be made."""


class NoLook(Record):
    """There is no label map, or not yet."""

    state: LookState
    """Stable name of the reason."""
    message: str
    """What happened, and what to do."""


@dataclass(frozen=True, slots=True)
class Look:
    """Names one label map."""

    frame: int
    """Id of the frame."""
    crc32: int
    """CRC-32 of the frame's pixels."""
    version: int
    """The version that segments it."""
    digest: str
    """First 12 hex digits of the SHA-256 of its weights."""

    @classmethod
    def of(cls, record: FrameRecord, manifest: Manifest) -> Self:
        """Return the name of the label map of a frame by a version."""
        weights = manifest.files.get(WEIGHTS)  # none in a damaged version, of which there is no label map anyway
        return cls(record.id, record.crc32, manifest.version, weights.sha256[:12] if weights else "0" * 12)

    @property
    def name(self) -> str:
        """Name of its files, without their ending."""
        return f"{self.frame:06d}-{self.crc32:08x}-{self.version:06d}-{self.digest}"


class LookStore:
    """The looks of a state directory."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def ask(self, look: Look) -> bool:
        """Ask for a look, or ask on; return False when `MOST_WAITING` others wait. Raises OSError (ENOSPC)."""
        asked = self._file(look, "ask")
        if not asked.exists() and sum(1 for _ in self._waiting()) >= MOST_WAITING:
            return False
        self.root.mkdir(parents=True, exist_ok=True)
        asked.touch()
        return True

    def found(self, look: Look) -> bytes | NoLook | None:
        """Return the grey PNG of class indices, or why there is none; None while nothing is known.

        A refusal holds `REFUSED_SECONDS`. Raises OSError.
        """
        with suppress(FileNotFoundError):
            return self._file(look, "png").read_bytes()
        path = self._file(look, "json")
        with suppress(FileNotFoundError, StorageError):  # damaged: it is made again
            if abs(time.time() - path.stat().st_mtime) < REFUSED_SECONDS:
                return read_record(path, NoLook)
        return None

    def waiting(self) -> Look | None:
        """Return the look that waits longest; those that nobody waits for any more are removed. Raises OSError."""
        asked = sorted(self._waiting(), key=lambda item: item[0])
        for at, path, look in asked:
            if abs(time.time() - at) < ASKED_SECONDS:
                return look
            path.unlink(missing_ok=True)
        return None

    def answer(self, look: Look, answer: bytes | NoLook) -> None:
        """Write an answer, whole or not at all, and remove the oldest beyond `KEPT` and `KEPT_BYTES`.

        Raises OSError (ENOSPC), DurabilityLost; then the look does not wait any more either.
        """
        try:
            if isinstance(answer, bytes):
                durable.write_bytes(self._file(look, "png"), answer)
            else:
                durable.write_record(self._file(look, "json"), answer)
        finally:
            self._file(look, "ask").unlink(missing_ok=True)
        self._forget_oldest()

    def clear(self) -> None:
        """Remove everything, also what a killed observer left; for the observer when it starts."""
        shutil.rmtree(self.root, ignore_errors=True)

    def _waiting(self) -> Iterator[tuple[float, Path, Look]]:
        """Yield when each look was asked for last (Unix, seconds), its file, and the look; other names do not count."""
        for path in self.root.glob("*.ask"):
            named = NAME.fullmatch(path.stem)
            with suppress(FileNotFoundError):
                if named:
                    frame, crc32, version, digest = named.groups()
                    look = Look(int(frame), int(crc32, 16), int(version), digest)
                    yield path.stat().st_mtime, path, look

    def _forget_oldest(self) -> None:
        answers = []
        for path in (*self.root.glob("*.png"), *self.root.glob("*.json")):
            with suppress(FileNotFoundError):
                status = path.stat()
                answers.append((status.st_mtime_ns, status.st_size, path))
        kept = 0
        for place, (_, size, path) in enumerate(sorted(answers, reverse=True)):
            kept += size
            if place >= KEPT or kept > KEPT_BYTES:
                path.unlink(missing_ok=True)

    def _file(self, look: Look, kind: Literal["ask", "png", "json"]) -> Path:
        return self.root / f"{look.name}.{kind}"
