"""Records of a round folder: the request of the daemon, the report of the round, the decision of the gate.

The round and the daemon are two processes and communicate only through these files.
"""

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import ConfigDict, Field

from storage.durable.record import Record
from storage.registry.manifest import BufferSnapshot

CHECKS = (
    "completed", "finite", "tensors", "vanished_class", "agreement", "source_miou", "source_class_iou", "forgetting",
    "canary", "holdout_bursts", "vote_diversity", "vote_disagreement", "vote_flip", "vote_styled_source",
    "shadow_images", "shadow_failed", "shadow_agreement",
)  # fmt: skip
"""Names of all checks that a verdict may hold, in their order."""

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

Stage = Literal[
    "planned", "training", "scoring", "suspended", "shadowing", "judged", "suggested", "promoted", "rejected", "failed"
]  # fmt: skip
"""Where a round stands; docs/explanation/rounds.md says what each stage means and which one follows."""
AT_WORK: tuple[Stage, ...] = ("planned", "training", "scoring", "suspended")
"""Stages in which a round holds its frames: its process runs, or will run again."""
ENDED: tuple[Stage, ...] = ("promoted", "rejected", "failed")
"""Final stages."""


class RoundStart(Record):
    """One start of the round's processes."""

    at: float
    """Unix time (seconds)."""
    step: int
    """Step of the newest training state then, from which the start goes on; 0: the beginning."""
    orderly: bool = False
    """Whether the daemon stopped it, to go on with it later. Otherwise it runs, has ended, or crashed."""


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


class Check(Record):
    """One veto or vote of the gate."""

    name: str
    """Stable name, for example `source_miou` or `vote_diversity`."""
    kind: Literal["veto", "vote", "evidence"]
    """A veto that fails rejects; votes are counted; evidence that is missing leaves the verdict inconclusive."""
    passed: bool
    """Whether the candidate passes."""
    value: float | None
    """The judged number; for votes the candidate's advantage over the incumbent."""
    limit: float | None
    """The bound of the check; for votes the bootstrap's lower bound, which must exceed 0."""
    detail: str
    """One sentence with numbers."""


class ConditionCost(Record):
    """What a candidate gains or loses in another condition, against the best version there."""

    number: int
    """Number of the condition."""
    name: str
    """Its name."""
    version: int
    """The version that is best there."""
    value: float | None = None
    """Gain in mIoU on source images, or in batch nuclear norm of golden frames (0-1); negative: a cost."""
    lower: float | None = None
    """Its lower bound."""
    upper: float | None = None
    """Its upper bound."""
    images: int = 0
    """Images that it was measured on."""
    better: bool = False
    """Whether the candidate is clearly better there."""
    worse: bool = False
    """Whether it is clearly worse there."""
    detail: str
    """One sentence with numbers, or why it is not known."""


class CandidateRuling(Record):
    """The gate's decision on one candidate of a round, in short."""

    name: str
    """Name of the candidate."""
    decision: Literal["accepted", "rejected", "inconclusive"]
    """accepted: it might serve; the best of those does."""
    reason: str
    """One sentence."""
    passed: tuple[str, ...]
    """Names of the checks that it passed."""
    failed: tuple[str, ...]
    """Names of the others."""
    elsewhere: tuple[ConditionCost, ...] = ()
    """What it gains or costs in the other conditions."""


class Answer(Record):
    """What became of a suggestion (`gate.policy: manual`)."""

    approved: bool
    """Whether its version is to serve."""
    by: str
    """Who decided: `operator`; `gate` when a newer suggestion replaced it."""
    reason: str
    """Why."""
    at: float
    """Unix time (seconds)."""


class Verdict(Record):
    """`verdict.json`: the gate's decision with every number and reason."""

    round: int
    """The round judged."""
    decision: Literal["accepted", "rejected", "inconclusive"]
    """accepted: the candidate serves; otherwise the incumbent stays."""
    reason: str
    """One sentence."""
    checks: list[Check]
    """Every veto and vote on the candidate."""
    at: float
    """Unix time (seconds)."""
    version: int | None = None
    """The version that the candidate became, when accepted; it stays when a person rejects the suggestion."""
    candidate: str = ""
    """Name of the candidate that decision and checks are about; empty in a verdict of mfmd before this field."""
    candidates: tuple[CandidateRuling, ...] = ()
    """Every candidate of the round."""
    answer: Answer | None = None
    """Who decided about the suggestion, and why; None when nobody was asked."""
    left_out: dict[str, int] = Field(default_factory=dict)
    """Frames that the round must not use, by reason."""


class ShadowTrial(Record):
    """The time in the shadow of a candidate that was accepted on its scores."""

    version: int
    """The version that the candidate became."""
    verdict: Verdict
    """The gate's verdict on the scores."""
    images: int
    """Images to be compared (`gate.shadow_images` when it began)."""
    seconds: float
    """Longest wait for them (`gate.advanced.shadow_seconds` when it began)."""
    agreement: float
    """Least share of pixels with the serving version's label (`gate.advanced.shadow_agreement` when it began, 0-1)."""
    failures: float
    """Largest share of images that may fail (`gate.advanced.shadow_failures` when it began, 0-1)."""
    placed: bool = False
    """Whether it runs in the shadow; before that, it waits for the end of somebody else's shadow."""
    waited: float = 0.0
    """Seconds that daemons have waited so far; time without a daemon does not count."""


class RoundRecord(Record):
    """`round.json`: where the round stands. The daemon writes it; its stage decides what happens next."""

    round: int
    """Number of the round."""
    stage: Stage = "planned"
    """Where it stands."""
    since: float
    """When it entered the stage (Unix, seconds)."""
    reason: str = ""
    """Why it ended, in one sentence; empty before."""
    starts: tuple[RoundStart, ...] = ()
    """Every start of its processes, oldest first."""
    stopped: bool = False
    """Whether an operator stopped it for good; written before its process is told."""
    trial: ShadowTrial | None = None
    """The candidate's time in the shadow; None when it had none."""
    answer: Answer | None = None
    """The decision about a suggestion, written before it is carried out."""

    def crashes(self) -> list[int]:
        """Return the steps of the starts that did not end in order, oldest first."""
        return [start.step for start in self.starts if not start.orderly]
