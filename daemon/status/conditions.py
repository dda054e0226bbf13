"""What `mfmd conditions show` and `GET /v1/conditions/{number}` give: one condition, and how far the others are."""

from pydantic import Field

from daemon.runtime.activity import ActivityPart
from storage.buffer.catalog import Catalog
from storage.gate.conditions import Condition, Conditions


class ConditionSummary(ActivityPart):
    """One known condition in one line."""

    number: int
    """Its number."""
    name: str
    """Its name."""
    current: bool
    """Whether the newest frames of all cameras together are of it."""
    best: int | None
    """Version that is best here."""
    best_reason: str
    """Why."""
    labelled: bool
    """Whether the labelled source images belong to it."""
    frames: int
    """Observed frames of the buffer that are of it."""
    golden: int
    """Golden frames."""
    opened: float
    """When it was first seen (Unix, seconds)."""
    last_seen: float
    """When its newest frame was observed (Unix, seconds)."""
    cameras: dict[str, int]
    """Its observed frames in the buffer by source label."""


class ConditionsStatus(ActivityPart):
    """All known conditions."""

    current: int | None = None
    """Condition of the newest frames of all cameras together; none when they are of no known one."""
    cameras: dict[str, int | None] = Field(default_factory=dict)
    """Condition of the newest frames of each camera (source label)."""
    threshold: float = 0.0
    """Distance from every centroid above which frames are of no known condition."""
    conditions: list[ConditionSummary] = Field(default_factory=list)
    """The known conditions, oldest first."""


class ConditionDetail(ActivityPart):
    """One condition."""

    summary: ConditionSummary
    """In one line."""
    golden_frames: dict[int, str]
    """Frame ids and file names of its golden frames; the name is empty when the buffer lost the frame."""
    threshold: float
    """Distance from every centroid above which frames are of no known condition."""
    distances: dict[int, float]
    """Least distance between its centroids and those of every other condition, by number."""


def describe_conditions(known: Conditions | None) -> ConditionsStatus:
    """Return all known conditions in one line each; an empty list before the first."""
    if known is None:
        return ConditionsStatus()
    return ConditionsStatus(
        current=known.current,
        cameras=known.cameras,
        threshold=known.threshold,
        conditions=[_summary(known, item) for item in known.conditions],
    )


def describe_condition(known: Conditions | None, number: int, catalog: Catalog) -> ConditionDetail:
    """Return one condition. Raises UnknownCondition, or StorageError."""
    import numpy as np  # `mfmd status` needs none of these

    from daemon.gate.changes import found
    from daemon.gate.conditions import distances

    item = found(known, number)
    assert known is not None
    names = {record.id: record.name for record in catalog.records(ids=item.golden)}
    others = [other for other in known.conditions if other.number != number]
    return ConditionDetail(
        summary=_summary(known, item),
        golden_frames={frame: names.get(frame, "") for frame in item.golden},
        threshold=known.threshold,
        distances={
            other.number: float(distances(np.array(item.centroids), np.array(other.centroids)).min())
            for other in others
        },
    )


def _summary(known: Conditions, item: Condition) -> ConditionSummary:
    return ConditionSummary(
        current=item.number == known.current,
        golden=len(item.golden),
        frames=item.frames,
        **item.model_dump(
            include={"number", "name", "best", "best_reason", "labelled", "opened", "last_seen", "cameras"}
        ),
    )
