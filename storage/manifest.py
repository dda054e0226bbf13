"""Records of the checkpoint registry: what a version is, what a ref points at, what happened when."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class Record(BaseModel):
    """A frozen record that is written as JSON; unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class FileHash(Record):
    """One file of a version."""

    sha256: str
    """Hex SHA-256 of the content."""
    size: int
    """Size (bytes)."""


class Manifest(Record):
    """`manifest.json` of a version: everything needed to rebuild, verify and explain it."""

    schema_version: Literal[1] = 1
    """Version of this layout."""
    version: int = 0
    """Number of the version; assigned by the registry."""
    parent: int | None = None
    """Version that the round started from; none for source training and imports."""
    origin: Literal["pretrain", "import", "round"]
    """How the weights came about."""
    round: int | None = None
    """Round that made it."""
    created: float
    """Unix time (seconds)."""
    network: dict[str, Any]
    """`NetworkSettings` as JSON: enough to build the network again."""
    classes: tuple[dict[str, Any], ...]
    """The class list (name and colour), in index order."""
    input_height: int
    """Height that images are scaled to fit (pixels)."""
    input_width: int
    """Width that images are scaled to fit (pixels)."""
    seed: int | None = None
    """Seed of the training that made it."""
    config_hash: str = ""
    """SHA-256 of the settings that made it (JSON)."""
    frames: int = 0
    """Target frames in the round's snapshot."""
    libraries: dict[str, str] = Field(default_factory=dict)
    """Versions of mfmd, python, torch, transformers."""
    scores: dict[str, float] = Field(default_factory=dict)
    """Headline scores by name (0-1)."""
    verdict: dict[str, Any] | None = None
    """The gate's verdict, for a round's version."""
    files: dict[str, FileHash] = Field(default_factory=dict)
    """Files by name; filled by the registry."""


class Ref(Record):
    """One file in `refs/`: a name for a version."""

    version: int
    """The version it points at."""
    since: float
    """Unix time (seconds) of the move."""
    by: str
    """Who moved it: `gate`, `operator`, `pretrain`, `import`."""
    reason: str
    """Why."""


class HistoryEvent(Record):
    """One line of `history.jsonl`."""

    at: float
    """Unix time (seconds)."""
    event: Literal["added", "promoted", "rejected", "inconclusive", "rolled_back", "pinned", "unpinned", "pruned"]
    """What happened."""
    version: int | None
    """The version concerned."""
    previous: int | None = None
    """The version that served before, for promotions and rollbacks."""
    round: int | None = None
    """The round concerned."""
    by: str
    """Who."""
    reason: str = ""
    """Why."""
