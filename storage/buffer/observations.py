"""Results of the observer about committed frames: statistics of the serving version, an embedding, facts of pixels.

Derived data: every row can be computed again from the buffer, so it is written without the cost of full durability. One
writer, the observer; any number of readers. A frame without a row is a valid frame that was not observed yet.
"""

import json
import sqlite3
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from storage.errors import NewerRecord, StorageError
from storage.eviction.policy import Embedding
from storage.layout import StateLayout

BUSY_SECONDS = 10.0
SCHEMA_VERSION = 2
REMEDY = "use the mfmd that wrote it, or remove it: the observer observes every frame again"
SCHEMA = """
CREATE TABLE IF NOT EXISTS observations (
  frame INTEGER PRIMARY KEY, version INTEGER NOT NULL, released INTEGER NOT NULL, at REAL NOT NULL,
  entropy REAL NOT NULL, confidence REAL NOT NULL, area BLOB NOT NULL, embedding BLOB NOT NULL, style BLOB NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS source_styles (
  image INTEGER NOT NULL, released INTEGER NOT NULL, style BLOB NOT NULL, PRIMARY KEY (released, image)
) STRICT;
CREATE TABLE IF NOT EXISTS facts (frame INTEGER PRIMARY KEY, numbers BLOB NOT NULL) STRICT;
"""
COLUMNS = "frame, version, released, at, entropy, confidence, area, embedding, style"


@dataclass(frozen=True, slots=True)
class Observation:
    """One observed frame."""

    frame: int
    """Id of the frame in the catalog."""
    version: int
    """Version that served then; entropy, confidence and area are its results."""
    released: int
    """Version whose encoder computed the embedding. It stays while versions change, so embeddings are comparable."""
    at: float
    """Unix time (seconds)."""
    entropy: float
    """Mean softmax entropy over the frame's valid pixels (nats)."""
    confidence: float
    """Mean of the largest softmax probability over valid pixels (0-1)."""
    area: NDArray[np.float32]
    """Share of valid pixels predicted per class, [K] (0-1)."""
    embedding: NDArray[np.float32]
    """Mean-pooled deepest feature map, [D]."""
    style: NDArray[np.float32]
    """Log-variance of each channel of the shallowest feature map of the released version's encoder, [S]."""


@dataclass(frozen=True, slots=True)
class ObservedMeans:
    """Means over the frames observed last, in the units of `Observation`."""

    frames: int
    version: int
    """Version of the newest of them."""
    at: float
    """Unix time of the newest observation (seconds)."""
    entropy: float
    confidence: float
    area: tuple[float, ...]
    """Mean share of pixels per class, [K] (0-1)."""


class Observations:
    """One connection to the observer's database; safe for several threads."""

    def __init__(self, path: Path, *, writable: bool) -> None:
        self.path = path
        self._lock = threading.RLock()
        self._made = False
        """Whether the tables exist: their writer makes them after the file."""
        if not writable and not path.exists():
            raise StorageError(f"{path}: no observations yet; `mfmd observe` (started by `mfmd run`) creates the file")
        uri = f"{path.absolute().as_uri()}?mode={'rwc' if writable else 'ro'}"
        with self._translated():
            self._connection = sqlite3.connect(uri, uri=True, timeout=BUSY_SECONDS, check_same_thread=False)
            try:
                self._prepare(writable)
            except BaseException:
                self._connection.close()
                raise

    @classmethod
    def open(cls, path: Path, *, writable: bool) -> Self:
        """Open it; the writer creates it if it is missing. Raises StorageError when a reader finds none."""
        return cls(path, writable=writable)

    def close(self) -> None:
        """Close the connection."""
        with self._lock:
            self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def add(self, observations: Sequence[Observation]) -> None:
        """Store observations; a frame that was observed before gets the new values."""
        with self._lock, self._translated(), self._connection:
            self._connection.executemany(
                f"INSERT OR REPLACE INTO observations ({COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                map(_to_row, observations),
            )

    def damage(self) -> str:
        """Return what SQLite finds wrong with the file; empty when nothing. Raises StorageError when unreadable."""
        lines = [str(row[0]) for row in self._select("PRAGMA quick_check")]
        return "" if lines == ["ok"] else "; ".join(lines[:3])

    def observed(self, released: int | None = None) -> set[int]:
        """Return ids of the observed frames; only those observed with the encoder of version `released`, if given."""
        rows = self._select("SELECT frame FROM observations WHERE released = COALESCE(?, released)", (released,))
        return {int(row[0]) for row in rows}

    def newest(self) -> int:
        """Return the id of the newest observed frame; 0 without any."""
        rows = self._select("SELECT MAX(frame) FROM observations")
        return int(rows[0][0] or 0) if rows else 0

    def after(self, frame: int) -> list[Observation]:
        """Return the observations of the frames committed after `frame`, in commit order."""
        rows = self._select(f"SELECT {COLUMNS} FROM observations WHERE frame > ? ORDER BY frame", (frame,))
        return [_to_observation(row) for row in rows]

    def forget_all_but(self, frames: Collection[int]) -> int:
        """Remove observations and facts of evicted frames; return how many observations."""
        gone, without = self.observed() - set(frames), self.with_facts() - set(frames)
        with self._lock, self._translated(), self._connection:
            self._connection.executemany("DELETE FROM observations WHERE frame = ?", [(frame,) for frame in gone])
            self._connection.executemany("DELETE FROM facts WHERE frame = ?", [(frame,) for frame in without])
        return len(gone)

    def with_facts(self) -> set[int]:
        """Return ids of the frames whose facts are known."""
        return {int(row[0]) for row in self._select("SELECT frame FROM facts")}

    def facts(self, frames: Collection[int]) -> dict[int, NDArray[np.float32]]:
        """Return the facts of the pixels of these frames (`daemon/gate/frame_facts.py`), as far as they are known."""
        statement = "SELECT frame, numbers FROM facts WHERE frame IN (SELECT value FROM json_each(?))"
        rows = self._select(statement, (json.dumps([int(frame) for frame in frames]),))
        return {int(frame): _to_vector(numbers) for frame, numbers in rows}

    def add_facts(self, facts: Mapping[int, NDArray[np.float32]]) -> None:
        """Store facts of frames by id."""
        rows = [(frame, np.asarray(numbers, "<f4").tobytes()) for frame, numbers in facts.items()]
        with self._lock, self._translated(), self._connection:
            self._connection.executemany("INSERT OR REPLACE INTO facts VALUES (?, ?)", rows)

    def get(self, frames: Collection[int]) -> list[Observation]:
        """Return observations of these frames, by frame; frames not yet observed are omitted."""
        rows = self._select(
            f"SELECT {COLUMNS} FROM observations WHERE frame IN (SELECT value FROM json_each(?)) ORDER BY frame",
            (json.dumps([int(frame) for frame in frames]),),
        )
        return [_to_observation(row) for row in rows]

    def source_styles(self, released: int) -> list[NDArray[np.float32]]:
        """Return the style vectors [S] of the labelled source images by this version's encoder, in order of images."""
        rows = self._select("SELECT style FROM source_styles WHERE released = ? ORDER BY image", (released,))
        return [_to_vector(row[0]) for row in rows]

    def add_source_styles(self, released: int, styles: Mapping[int, NDArray[np.float32]]) -> None:
        """Replace the style vectors of source images, by image index; those of other versions are removed."""
        rows = [(image, released, np.asarray(style, "<f4").tobytes()) for image, style in styles.items()]
        with self._lock, self._translated(), self._connection:
            self._connection.execute("DELETE FROM source_styles")
            self._connection.executemany("INSERT INTO source_styles VALUES (?, ?, ?)", rows)

    def means(self, last: int) -> ObservedMeans | None:
        """Return means over the `last` newest frames; None before the first.

        Frames observed under another class list than the newest are omitted.
        """
        rows = self._select(f"SELECT {COLUMNS} FROM observations ORDER BY frame DESC LIMIT ?", (last,))
        items = [_to_observation(row) for row in rows]
        if not items:
            return None
        newest = items[0]
        alike = [item for item in items if item.area.shape == newest.area.shape]
        area = np.mean([item.area for item in alike], axis=0)
        return ObservedMeans(
            frames=len(alike),
            version=newest.version,
            at=max(item.at for item in alike),
            entropy=float(np.mean([item.entropy for item in alike])),
            confidence=float(np.mean([item.confidence for item in alike])),
            area=tuple(float(share) for share in area),
        )

    def _prepare(self, writable: bool) -> None:
        found = self._connection.execute("PRAGMA user_version").fetchone()[0]
        if found > SCHEMA_VERSION:
            raise NewerRecord(f"{self.path}: format {found}, this mfmd reads {SCHEMA_VERSION}; {REMEDY}")
        if 0 < found < SCHEMA_VERSION and not writable:
            raise StorageError(f"{self.path}: format {found} of an older mfmd; the observer replaces it when it starts")
        if writable:
            self._connection.execute("PRAGMA journal_mode = WAL")
            self._connection.execute("PRAGMA synchronous = NORMAL")
            # derived data: the observer observes every frame again. One transaction: a reader sees all tables or none
            older = "DROP TABLE IF EXISTS observations;" if found < SCHEMA_VERSION else ""
            self._connection.executescript(
                f"BEGIN IMMEDIATE; {older} {SCHEMA} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;"
            )

    def _select(self, statement: str, values: Sequence[int | str | None] = ()) -> list[tuple[Any, ...]]:
        """Return rows; none while the observer is just creating the file."""
        with self._lock, self._translated():
            self._made = self._made or bool(self._connection.execute("PRAGMA user_version").fetchone()[0])
            return self._connection.execute(statement, values).fetchall() if self._made else []

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.DatabaseError as error:
            raise StorageError(f"{self.path}: {error}; remove it; the observer creates it again") from error


def _to_row(item: Observation) -> tuple[float | bytes, ...]:
    numbers = (item.frame, item.version, item.released, item.at, item.entropy, item.confidence)
    return *numbers, *(np.asarray(vector, "<f4").tobytes() for vector in (item.area, item.embedding, item.style))


def _to_observation(row: tuple[Any, ...]) -> Observation:
    frame, version, released, at, entropy, confidence, *vectors = row
    area, embedding, style = map(_to_vector, vectors)
    return Observation(frame, version, released, at, entropy, confidence, area, embedding, style)


def _to_vector(data: bytes) -> NDArray[np.float32]:
    return np.frombuffer(data, "<f4").astype(np.float32)


def read_embeddings(layout: StateLayout, frames: Collection[int]) -> Sequence[Embedding]:
    """Return the observer's embeddings of these frames, as far as they exist; none from an unreadable database.

    `mfmd status` and the observer report a damaged database; ingest continues meanwhile.
    """
    if not frames or not layout.observations.exists():
        return []
    try:
        with Observations.open(layout.observations, writable=False) as observations:
            found = observations.get(frames)
    except StorageError:
        return []
    return [Embedding(item.frame, item.released, item.embedding) for item in found]
