"""The answer of `GET /v1/serving`."""

from pydantic import BaseModel, ConfigDict

from daemon.serving.plane import InferencePlane
from daemon.serving.versions.follower import SwapFailure


class ServingStatus(BaseModel):
    """The serving version, the wanted version, and the queue."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    ready: bool
    """Whether requests are answered."""
    problems: list[str]
    """Why it does not work: a thread that ended by a bug (then `/healthz` is 503 too)."""
    version: int | None
    """Version that answers new requests; None before the first."""
    sha256: str | None
    """SHA-256 of its weights."""
    wanted: int | None
    """Version that the serving ref names; differs from `version` during a swap and after a failed one."""
    wanted_by: str | None
    """Who moved the ref there."""
    wanted_reason: str | None
    """Why."""
    resident: list[int]
    """Versions in memory, the live one first; a swap to one of them reads nothing from disk."""
    last_failure: SwapFailure | None
    """The last swap that failed since the start; current if its version is `wanted`."""
    queue_images: int
    """Images that wait for a forward pass."""
    queue_limit: int
    """Images that may wait."""
    device: str
    """Where the network runs."""
    computes: str | None
    """Number format of the serving version: float32, bf16 or fp16."""
    started: float
    """Unix time of the start (seconds)."""


def describe(plane: InferencePlane) -> ServingStatus:
    """Return the status of `plane` now."""
    live, wanted = plane.slots.live, plane.follower.wanted
    return ServingStatus(
        ready=plane.ready,
        problems=plane.dead,
        version=live.version if live else None,
        sha256=live.digest if live else None,
        wanted=wanted.version if wanted else None,
        wanted_by=wanted.by if wanted else None,
        wanted_reason=wanted.reason if wanted else None,
        resident=list(plane.slots.versions),
        last_failure=plane.follower.failure,
        queue_images=plane.batcher.depth,
        queue_limit=plane.settings.serving.advanced.queue_images,
        device=str(plane.device),
        computes=live.forward.computes if live else None,
        started=plane.started,
    )
