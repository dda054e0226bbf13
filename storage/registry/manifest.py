"""Records of the checkpoint registry: versions, refs, events."""

import operator
from typing import Any, ClassVar, Literal

from pydantic import Field

from configs.buffer import FitMode, Resample
from storage.durable.record import FileHash, Record


class BufferSnapshot(Record):
    """The frames of a round in a few numbers; the round's `spec.json` names each."""

    train: int
    """Frames to train on."""
    holdout: int
    """Frames to score on."""
    digest: str
    """Hex SHA-256 over the sorted digests of the files that the frames came from: equal for equal frames."""
    first: int
    """Smallest frame id."""
    last: int
    """Largest frame id."""
    oldest: float
    """Capture time of the oldest frame (Unix, seconds)."""
    newest: float
    """Capture time of the newest frame (Unix, seconds)."""


class Manifest(Record):
    """`manifest.json` of a version: everything needed to rebuild, verify and explain it."""

    newest_format: ClassVar[int] = 3
    schema_version: Literal[1, 2, 3] = 2
    """Version of this layout: 2 since `snapshot`, `settings` and `code`; a manifest of 1 has none of them. 3 with a
    `base`, and only then."""
    version: int = 0
    """Number of the version; assigned by the registry."""
    parent: int | None = None
    """Version that the round started from; None for source training and imports."""
    origin: Literal["pretrain", "import", "round"]
    round: int | None = None
    created: float
    """Unix time (seconds)."""
    network: dict[str, Any]
    """`Architecture` (configs/network.py) as JSON: enough to build the network again."""
    network_code: str = Field(default="", exclude_if=operator.not_)
    """SHA-256 over the source files of an operator's own network; empty, and not written, for others, or when they were
    not found: an mfmd before own networks reads the manifest too."""
    classes: tuple[dict[str, Any], ...]
    """The class list (name and colour), in index order."""
    input_height: int
    """Height of the frame that images are scaled into (pixels)."""
    input_width: int
    """Width of that frame (pixels)."""
    input_fit: FitMode = "aspect"
    """How images are scaled into it (`buffer.advanced.fit`)."""
    input_resample: Resample = "bilinear"
    """Filter that scales them."""
    seed: int | None = None
    """Seed of the training that made it."""
    config_hash: str = ""
    """SHA-256 of the settings that made it (JSON)."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """The settings that made it, secrets masked: what `mfmd checkpoints diff` compares."""
    frames: int = 0
    """Target frames in the round's snapshot."""
    snapshot: BufferSnapshot | None = None
    """The frames of its round; None for source training and imports."""
    libraries: dict[str, str] = Field(default_factory=dict)
    """Versions of mfmd, python, torch and other libraries that the weights depend on."""
    code: str = ""
    """SHA-256 of mfmd's own source files."""
    scores: dict[str, float] = Field(default_factory=dict)
    """Headline scores by name (0-1)."""
    verdict: dict[str, Any] | None = None
    """The gate's verdict, for a round's version; None while it runs in the shadow before the verdict."""
    files: dict[str, FileHash] = Field(default_factory=dict)
    """Files by name; filled by the registry."""
    base: FileHash | None = Field(default=None, exclude_if=lambda value: value is None)
    """The file of frozen tensors that the version shares with others; None: its own file holds all. Filled by the
    registry."""


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
    event: Literal[
        "added",
        "promoted",
        "recalled",
        "rejected",
        "inconclusive",
        "rolled_back",
        "pinned",
        "unpinned",
        "pruned",
        "shadow_started",
        "shadow_ended",
    ]
    version: int | None
    previous: int | None = None
    """The version that served before, for promotions and rollbacks."""
    round: int | None = None
    by: str
    reason: str = ""
