"""Whether frames are made alike: those in the buffer, those that are made now, and those that the model serves with."""

from collections.abc import Iterator
from contextlib import closing

from configs.settings import Settings
from daemon.doctor.finding import Finding, warn
from storage.buffer.catalog import Catalog
from storage.buffer.fits import made_otherwise
from storage.errors import StorageError
from storage.layout import StateLayout
from storage.media.images import Fit
from storage.registry.registry import CheckpointRegistry


def examine_frames(settings: Settings) -> list[Finding]:
    """Return findings about frames that differ; none when all are made alike."""
    return [*_stored(settings), *_served(settings)]


def _stored(settings: Settings) -> Iterator[Finding]:
    layout, buffer = StateLayout(settings.state), settings.buffer
    if not layout.catalog.exists():
        return
    try:
        with closing(Catalog.open(layout.catalog, writable=False)) as catalog:
            records = catalog.records()
    except StorageError:
        return  # `mfmd check` tells it
    if others := made_otherwise(records, buffer):
        counts, fit = f"{len(others)} of {len(records)} stored frames", buffer.advanced
        detail = f"{counts} were not made with buffer.advanced {{fit: {fit.fit}, resample: {fit.resample}}}"
        resize = f"`mfmd buffer resize --height {buffer.height} --width {buffer.width}`"
        yield warn("frames", f"{detail}: rounds leave them out", f"stop `mfmd run`, then {resize} makes them alike")


def _served(settings: Settings) -> Iterator[Finding]:
    registry, buffer = CheckpointRegistry(StateLayout(settings.state).checkpoints), settings.buffer
    try:
        version = registry.serving_version()
        manifest = registry.manifest(version)
    except StorageError:
        return  # another finding tells it
    served = (manifest.input_height, manifest.input_width, Fit(manifest.input_fit, manifest.input_resample))
    made = (buffer.height, buffer.width, Fit.of(buffer))
    if served == made:
        return
    detail = (
        f"version {version} serves images {_said(*served)}; frames are {_said(*made)}: "
        "rounds train and are judged on other pixels than those that their versions serve"
    )
    remedy = (
        "set height, width, advanced.fit and advanced.resample of `buffer` to what it serves with, or register the "
        "model anew (`mfmd import`, `mfmd pretrain`) and promote that version"
    )
    yield warn("frames_served", detail, remedy)


def _said(height: int, width: int, fit: Fit) -> str:
    return f"{'squashed' if fit.mode == 'squash' else 'scaled to fit'} to {height}x{width} ({fit.resample})"
