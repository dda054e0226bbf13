"""What the daemon decides about a round, and where the round stands: `verdict.json` and `round.json`."""

from typing import Literal

from pydantic import Field

from storage.durable.record import Record

CHECKS = (
    "completed", "finite", "tensors", "vanished_class", "agreement", "source_miou", "source_class_iou", "forgetting",
    "canary", "holdout_bursts", "vote_diversity", "vote_disagreement", "vote_flip", "vote_styled_source",
    "shadow_images", "shadow_failed", "shadow_agreement",
)  # fmt: skip
"""Names of all checks that a verdict may hold, in their order."""

Stage = Literal[
    "planned", "training", "scoring", "suspended", "shadowing", "judged", "suggested", "promoted", "rejected", "failed"
]  # fmt: skip
"""Where a round stands; docs/explanation/rounds.md says what each stage means and which one follows."""
AT_WORK: tuple[Stage, ...] = ("planned", "training", "scoring", "suspended")
"""Stages in which a round holds its frames: its process runs, or will run again."""
ENDED: tuple[Stage, ...] = ("promoted", "rejected", "failed")
"""Final stages."""


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
    labels: bool = False
    """Whether they are labelled: then the gain is true mIoU, and otherwise votes say what is better."""
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


class RoundStart(Record):
    """One start of the round's processes."""

    at: float
    """Unix time (seconds)."""
    step: int
    """Step of the newest training state then, from which the start goes on; 0: the beginning."""
    orderly: bool = False
    """Whether the daemon stopped it, to go on with it later. Otherwise it runs, has ended, or crashed."""


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
