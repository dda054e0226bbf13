"""Check whether the observer's records belong to frames that exist. All of them can be computed again."""

from collections.abc import Iterator
from functools import partial

from storage import durable
from storage.buffer.observations import Observations
from storage.checking.catalog import REPAIR, committed_frames
from storage.checking.problem import Problem, Scope
from storage.errors import StorageError
from storage.layout import StateLayout


def check_observations(scope: Scope) -> Iterator[Problem]:
    """Return problems of the observer's database."""
    layout = scope.layout
    if not layout.observations.exists():
        return
    observed: set[int] = set()
    try:
        with Observations.open(layout.observations, writable=False) as observations:
            damage = observations.damage()
            if not damage and observations.is_made():
                observed = observations.observed()
    except StorageError as error:
        damage = str(error)
    frames = committed_frames(layout)
    if frames is not None:
        yield from _gone(layout, len(observed - frames))
    if damage:
        remedy = f"{REPAIR} removes it; the observer observes every frame again"
        yield Problem("observations_damaged", layout.observations, damage, remedy, partial(_remove, layout))


def _gone(layout: StateLayout, count: int) -> Iterator[Problem]:
    if count:
        detail = f"{count} observations of evicted frames"
        remedy = f"{REPAIR}, or the observer, removes them"
        yield Problem("observation_orphan", layout.observations, detail, remedy, partial(_forget, layout))


def _forget(layout: StateLayout) -> None:
    frames = committed_frames(layout)
    if frames is not None:
        with Observations.open(layout.observations, writable=True) as observations:
            observations.forget_all_but(frames)


def _remove(layout: StateLayout) -> None:
    for suffix in ("", "-wal", "-shm"):
        durable.remove_file(layout.observations.with_name(layout.observations.name + suffix))
