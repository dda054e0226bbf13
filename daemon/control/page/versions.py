"""The views of versions and rounds: the timeline, and one version or round with its whole reasoning."""

from collections.abc import Callable
from contextlib import suppress
from typing import Annotated

from fastapi import APIRouter, Path, Query
from fastapi.responses import HTMLResponse, JSONResponse

from daemon.control.errors import status_of
from daemon.control.messages import LARGEST_NUMBER
from daemon.control.page.now import curve_of
from daemon.control.page.timeline import SHAPES, draw, moments
from daemon.control.page.view import HEADERS, View
from daemon.rounds.history import summaries
from daemon.status.explained import explained_round, explained_version
from daemon.status.version_diff import VersionDiff, diff_versions
from storage.durable.record import read_record
from storage.errors import StorageError
from storage.gate.drift import Drift
from storage.registry.manifest import Manifest
from storage.registry.registry import CheckpointRegistry
from storage.rounds.folder import RoundStore

SHOWN = 100
"""Moments on one timeline."""
MOST_ROUNDS = 1000
"""Newest rounds that are read."""
Number = Annotated[int, Path(ge=1, le=LARGEST_NUMBER)]
Other = Annotated[int | None, Query(ge=1, le=LARGEST_NUMBER)]
"""A version to compare with."""


def create_versions(view: View) -> APIRouter:
    """Return the routes of the views."""
    router = APIRouter()
    router.add_api_route("/versions", _timeline(view), methods=["GET"])
    router.add_api_route("/versions/{number}", _version(view), methods=["GET"])
    router.add_api_route("/rounds/{number}", _round(view), methods=["GET"])

    @router.get("/rounds/{number}/curve")
    def curve(number: Number) -> JSONResponse:
        """Return the losses of a round."""
        return JSONResponse(curve_of(RoundStore(view.context.layout.rounds).folder(number)), headers=HEADERS)

    return router


def _timeline(view: View) -> Callable[..., HTMLResponse]:
    context = view.context

    def timeline(skip: Annotated[int, Query(ge=0, le=LARGEST_NUMBER)] = 0) -> HTMLResponse:
        """Show what happened, `skip` of the newest moments left out."""
        registry, drift = context.registry, None
        with suppress(StorageError):  # Now says what is damaged
            drift = read_record(context.layout.drift, Drift)
        alive = context.rounds.running is not None
        rounds = summaries(RoundStore(context.layout.rounds), MOST_ROUNDS, alive=alive)
        found = moments(registry.history(), rounds, drift)
        shown = found[skip : skip + SHOWN]
        return view.show(
            "versions.html",
            active="versions",
            timeline=draw(shown),
            shapes=SHAPES,
            shown=shown,
            earlier=skip + SHOWN if len(found) > skip + SHOWN else None,
            later=max(0, skip - SHOWN) if skip else None,
            versions=_rows(registry),
        )

    return timeline


def _rows(registry: CheckpointRegistry) -> list[dict[str, object]]:
    """Return one row for each version on disk, newest first; a damaged one says so."""
    refs, _ = registry.readable_refs()
    names: dict[int, list[str]] = {}
    for name, ref in refs.items():
        names.setdefault(ref.version, []).append(name)
    pins, state = set(registry.pins()), registry.state()
    rows: list[dict[str, object]] = []
    for version in reversed(registry.versions()):
        marks = [*names.get(version, []), *(["pinned"] if version in pins else []), *state.marks(version)]
        manifest, damage = _manifest(registry, version)
        rows.append({"version": version, "marks": marks, "manifest": manifest, "damage": damage})
    return rows


def _manifest(registry: CheckpointRegistry, version: int) -> tuple[Manifest | None, str]:
    try:
        return registry.manifest(version), ""
    except StorageError as error:
        return None, str(error)


def _version(view: View) -> Callable[..., HTMLResponse]:
    context = view.context

    def version(number: Number, done: str = "", other: Other = None) -> HTMLResponse:
        """Show a version: why it is there, its lineage and scores, what differs from another, and forms."""
        registry = context.registry
        try:
            told = explained_version(context.layout, number)
            serving = registry.serving()
        except StorageError as error:
            return view.problem(f"No view of version {number}", str(error), status_of(error))
        manifest, damage = _manifest(registry, number)
        to = other if other is not None else manifest.parent if manifest else None
        difference, missing = _difference(registry, to, number)
        return view.show(
            "version.html",
            active="versions",
            done=done,
            number=number,
            told=told,
            manifest=manifest,
            damage=damage,
            lineage=_lineage(registry, number),
            difference=difference,
            missing=missing,
            others=[item for item in reversed(registry.versions()) if item != number],
            other=to,
            serving=serving.version if serving else None,
            behind=registry.state().is_behind(number),
            present=number in registry.versions(),
            pinned=number in registry.pins(),
        )

    return version


def _lineage(registry: CheckpointRegistry, number: int) -> list[int]:
    """Return the version and its ancestors as far as manifests tell, youngest first."""
    chain, following = list[int](), [number]
    while following and following[0] not in chain:
        chain.append(following.pop())
        manifest, _ = _manifest(registry, chain[-1])
        following = [manifest.parent] if manifest is not None and manifest.parent is not None else []
    return chain


def _difference(registry: CheckpointRegistry, first: int | None, second: int) -> tuple[VersionDiff | None, str]:
    """Return what differs, without the weights, whose comparison reads both files; or why that cannot be said."""
    if first is None:
        return None, "It has no parent to compare with."
    try:
        return diff_versions(registry, first, second, weights=False), ""
    except StorageError as error:
        return None, str(error)


def _round(view: View) -> Callable[..., HTMLResponse]:
    def one_round(number: Number) -> HTMLResponse:
        """Show a round: why it ended as it did, with its losses."""
        try:
            told = explained_round(view.context.layout, number)
        except StorageError as error:
            return view.problem(f"No view of round {number}", str(error), status_of(error))
        return view.show("round.html", active="versions", number=number, told=told)

    return one_round
