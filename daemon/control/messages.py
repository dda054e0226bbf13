"""Request and response bodies of the control API."""

from typing import Annotated

import msgspec
from pydantic import BaseModel

from daemon.rounds.history import RoundSummary
from storage.registry.manifest import Ref
from storage.rounds.records import Progress
from storage.rounds.verdict import Verdict

LARGEST_NUMBER = 999_999_999
"""Of a version or a round: more digits are no file name on any disk."""

MOST_VALUES = 20_000
"""Most values of one body: a short name takes twenty times its text."""

Number = Annotated[int, msgspec.Meta(ge=1, le=LARGEST_NUMBER)]


class PinRequest(msgspec.Struct, forbid_unknown_fields=True):
    """Optional body of pin and unpin."""

    reason: str = ""
    """Reason, recorded in the history."""


class RollbackRequest(PinRequest, forbid_unknown_fields=True):
    """Optional body of `POST /v1/rollback`."""

    to: Number | None = None
    """Version to serve; none: the one that served before."""
    expected: Number | None = None
    """Only while this version serves: a request that is sent again after its answer was lost goes no further back."""


class PromoteRequest(msgspec.Struct, forbid_unknown_fields=True):
    """Body of `POST /v1/promote`."""

    version: Number
    """Version to serve."""
    expected: Number | None = None
    """Only while this version serves."""
    reason: str = ""
    """Reason, recorded in the history."""


class AnswerRequest(msgspec.Struct, forbid_unknown_fields=True):
    """Body of `POST /v1/approve` and `POST /v1/reject`."""

    version: Number
    """The version that waits for a decision."""
    reason: str = ""
    """Reason, recorded in the history and in the verdict."""


class PauseRequest(msgspec.Struct, forbid_unknown_fields=True):
    """Body of `POST /v1/pause` and `POST /v1/resume`."""

    reason: str
    """Reason, shown while it lasts; that of its end, for the log."""


class RetryRequest(msgspec.Struct, forbid_unknown_fields=True):
    """The refused files that `POST /v1/refused/retry` retries; all if the body is empty."""

    paths: list[str] = []
    """Relative to the drop folder, as `mfmd refused list` shows them."""
    reason: str | None = None
    """A reason code."""


READ_MESSAGES = (PinRequest, RollbackRequest, PromoteRequest, AnswerRequest, PauseRequest, RetryRequest)
"""What routes read themselves; the OpenAPI page describes it."""


class CheckpointSummary(BaseModel):
    """One version in one line."""

    version: int
    created: float | None = None
    origin: str = "unknown"
    parent: int | None = None
    round: int | None = None
    pinned: bool
    scores: dict[str, float] = {}
    marks: list[str]
    """What to know before going back to it: `rolled back`, `never served`, `rejected`, `inconclusive`."""
    damaged: str | None = None


class CheckpointList(BaseModel):
    """`GET /v1/checkpoints`."""

    serving: Ref | None
    previous: Ref | None
    versions: list[CheckpointSummary]
    damaged: list[str] = []
    """What is wrong with refs that cannot be read, and what to do."""


class RoundList(BaseModel):
    """`GET /v1/rounds`."""

    running: int | None
    """Number of the round that runs or is about to."""
    rounds: list[RoundSummary]
    """Newest first."""


class RoundDetail(BaseModel):
    """`GET /v1/rounds/{number}`."""

    summary: RoundSummary
    progress: Progress | None
    verdict: Verdict | None
