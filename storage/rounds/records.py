"""What the daemon and a round tell each other: the request, the progress, the scores.

They are two processes and communicate only through these files. What the daemon makes of it: `storage.rounds.verdict`.
"""

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import ConfigDict, Field

from storage.durable.record import Record
from storage.registry.manifest import BufferSnapshot

Effort = Literal["statistics", "tiny", "full"]
"""How large a round is. statistics: BatchNorm statistics of the newest frames, nothing learnt; tiny: the recipe with
few steps; full: the recipe as configured."""


class KnownCondition(Record):
    """A condition other than the newest one, when the round began."""

    number: int
    """Its number."""
    name: str
    """Its name."""
    golden: tuple[int, ...]
    """Ids of its golden frames that the round has leased; held out."""
    best: int
    """The version that is best there."""
    labelled: bool
    """Whether the labelled source images belong to it."""


class RoundConditions(Record):
    """What the daemon knew about conditions when the round began."""

    newest: int
    """Number of the condition of the newest frames."""
    name: str
    """Its name."""
    frames: tuple[int, ...]
    """Held-out frames of it; the gate decides on these."""
    others: tuple[KnownCondition, ...] = ()
    """The others."""


class RoundSpec(Record):
    """`spec.json`: everything a round needs; written by the daemon before the round starts."""

    round: int
    """Number of the round."""
    incumbent: int
    """Version that serves; student and teacher start from it, unless the round `restarts`."""
    released: int
    """Oldest ancestor of the incumbent: the model that was released; anchor of the source guard."""
    train_frames: tuple[int, ...]
    """Ids of the leased frames to train on."""
    holdout_frames: tuple[int, ...]
    """Ids of the leased frames to score on; rounds never train on them."""
    settings: dict[str, Any]
    """The settings as JSON (`Settings.model_dump(mode="json")`)."""
    created: float
    """Unix time (seconds)."""
    trigger: Literal["new_frames", "interval", "drift", "manual"]
    """Why the round started."""
    effort: Effort = "full"
    """How large it is."""
    inherits: int | None = None
    """Round whose training state this one starts from; None: clean, from the incumbent's weights."""
    restarts: bool = False
    """Whether student and teacher start from the released weights, because rounds before it were rejected."""
    snapshot: BufferSnapshot | None = None
    """The leased frames in a few numbers, for the manifest of the candidate."""
    conditions: RoundConditions | None = None
    """None while the condition of the newest frames is unknown: then all held-out frames decide."""
    left_out: dict[str, tuple[int, ...]] = Field(default_factory=dict)
    """Ids of the frames that the round must not use, by reason (`configs.round.LeftOut`)."""

    @property
    def start(self) -> int:
        """Version whose weights student and teacher start from, when no training state is inherited."""
        return self.released if self.restarts else self.incumbent

    @property
    def deciding_frames(self) -> tuple[int, ...]:
        """Ids of the held-out frames that the gate decides on."""
        return self.holdout_frames if self.conditions is None else self.conditions.frames


if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]


class Progress(Record):
    """One line of `progress.jsonl`; nothing is decided by it, so fields of a newer mfmd are omitted."""

    model_config = ConfigDict(extra="ignore")
    at: float
    """Unix time (seconds)."""
    phase: Literal["loading", "training", "scoring", "done", "shadow"]
    """Activity of the round; shadow: it has ended, and its candidate runs in the shadow of the serving version."""
    step: int
    """Steps done; in the shadow: images compared."""
    steps: int
    """Step budget; in the shadow: images wanted."""
    losses: dict[str, float] = Field(default_factory=dict)
    """Losses by name: source, mix, mfm."""
    kept_ratio: float | None = None
    """Share of pseudo-label pixels above the threshold (0-1)."""
    images_per_second: float | None = None
    """Training rate (source + target images a second)."""
    memory: dict[str, int] = Field(default_factory=dict)
    """Memory of the round's first process (bytes): resident; device: most that it reserved on the GPU so far."""
    agreement: float | None = None
    """In the shadow: share of pixels with the label of the version that serves (0-1)."""


class ImageCounts(Record):
    """Per-image, per-class pixel counts against labels; the mIoU of any resample of images follows from their sums."""

    tp: list[list[int]]
    """True positives, [images][classes] (pixels)."""
    fp: list[list[int]]
    """False positives, [images][classes] (pixels)."""
    fn: list[list[int]]
    """False negatives, [images][classes] (pixels)."""

    def arrays(self) -> "tuple[Floats, Floats, Floats]":
        """Return counts [images, classes], float64: tp, fp, fn."""
        import numpy as np  # most readers of records need no array

        tp, fp, fn = (np.asarray(kind, dtype=np.float64) for kind in (self.tp, self.fp, self.fn))
        return tp, fp, fn

    def sums(self) -> "tuple[Floats, Floats, Floats]":
        """Return counts [classes] summed over images, float64: tp, fp, fn."""
        tp, fp, fn = (kind.sum(axis=0) for kind in self.arrays())
        return tp, fp, fn


class ModelScores(Record):
    """Scores of one version for the gate. Lists over images have one order for all versions."""

    version: int | None
    """Registry version; None for the candidate."""
    finite: bool
    """Whether all weights and all scored logits were finite."""
    missing: list[str] = Field(default_factory=list)
    """Tensor names that the candidate lacks or has beyond the incumbent's."""
    source: ImageCounts | None = None
    """Counts on source validation images; None when source-free."""
    styled: ImageCounts | None = None
    """Counts on source validation images restyled to the buffer; None when source-free."""
    canary: ImageCounts | None = None
    """Counts on canary images: labelled target images; None without any."""
    area: list[list[float]] = Field(default_factory=list)
    """Share of pixels predicted per class, [hold-out images][classes] (0-1)."""
    gram: list[list[list[float]]] = Field(default_factory=list)
    """P^T P of P [sampled pixels, classes] softmax rows, [hold-out images][classes][classes]; batch nuclear norm."""
    marginal: list[list[float]] = Field(default_factory=list)
    """Mean softmax, [hold-out images][classes] (0-1)."""
    dropout_disagreement: list[float] = Field(default_factory=list)
    """Share of pixels where a pass with dropout changes the class, [hold-out images] (0-1)."""
    flip_consistency: list[float] = Field(default_factory=list)
    """Share of pixels that keep their class under a horizontal flip, [hold-out images] (0-1)."""
    agreement: list[float] = Field(default_factory=list)
    """Share of pixels with the incumbent's class, [hold-out images] (0-1)."""
    entropy: float | None = None
    """Mean softmax entropy on hold-out frames (nats); exposed, never a vote."""
    plugins: dict[str, list[float]] = Field(default_factory=dict)
    """Scores of plug-ins by name, [hold-out images]; never a vote."""


CandidateName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
"""Name of a candidate; part of the name of its file."""


class ConditionScores(Record):
    """Scores on the golden frames of a condition other than the newest one."""

    number: int
    """Number of the condition."""
    name: str
    """Its name."""
    labelled: bool
    """Whether the labelled source images belong to it."""
    version: int
    """The version that is best there."""
    best: ModelScores | None = None
    """Its scores; None when it could not be read."""
    missing: str = ""
    """Why it could not be read."""
    candidates: dict[CandidateName, ModelScores] = Field(default_factory=dict)
    """Scores of every candidate, by name."""


class RoundScores(Record):
    """`scores.json`: how the round ended, and the scores of the versions it compared. Written last, durably."""

    status: Literal["completed", "stopped", "failed"]
    """completed: a candidate exists; stopped: SIGTERM; failed: see reason."""
    reason: str
    """For example `step budget`, `time budget`, `SIGTERM`, `non-finite loss at step 12`."""
    steps: int
    """Steps done."""
    seconds: float
    """Wall time of the round (seconds)."""
    reference_marginal: list[float] = Field(default_factory=list)
    """Reference class shares of diversity: of source labels, or of the released model on hold-out frames."""
    released: ModelScores | None = None
    """The released model: only `source` is filled."""
    incumbent: ModelScores | None = None
    """The serving version."""
    candidate: ModelScores | None = None
    """The candidate that the recipe made: the teacher, or the student without one."""
    name: CandidateName = "candidate"
    """Name of that candidate."""
    others: dict[CandidateName, ModelScores] = Field(default_factory=dict)
    """Further candidates by name: the student, and averages with the serving version; lists have the same order."""

    elsewhere: tuple[ConditionScores, ...] = ()
    """Scores in the other conditions."""
    canary_problem: str = ""
    """Why canary images could not be read; then no candidate is accepted."""

    def candidates(self) -> dict[str, ModelScores]:
        """Return the scores of every candidate by name, the recipe's own first; empty when the round made none."""
        return {} if self.candidate is None else {self.name: self.candidate, **self.others}
