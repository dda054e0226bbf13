"""Inputs of a round, read from its spec: networks, frames, source images, processes."""

from dataclasses import dataclass

import torch
from accelerate.accelerator import Accelerator

from adapters.checkpoints.checkpoint import load_version
from adapters.errors import AdapterError, NetworkMismatch
from adapters.networks.network import SegmentationNetwork
from adapters.networks.parallel import check_replicated
from adapters.self_training.feature_reference import reference_network
from configs.recipe import BnStatisticsSettings, RareClassSettings
from configs.settings import Settings
from storage.buffer.catalog_records import FrameRecord
from storage.buffer.frames import FrameBuffer
from storage.layout import StateLayout
from storage.registry.registry import CheckpointRegistry
from storage.rounds.records import RoundSpec
from storage.source.labelled import LabelledSet
from storage.source.labelled_import import import_labelled


@dataclass(frozen=True, slots=True)
class RoundInputs:
    """Everything a round reads; close `buffer` when done."""

    spec: RoundSpec
    """The request of the daemon."""
    settings: Settings
    """The settings in the spec."""
    accelerator: Accelerator
    """Device, precision and processes."""
    registry: CheckpointRegistry
    """The registry of versions; only read."""
    student: SegmentationNetwork
    """The incumbent's weights, on the device, in eval mode."""
    released: SegmentationNetwork | None
    """The released version, frozen, in eval mode, on the device; None when the recipe does not use it."""
    buffer: FrameBuffer
    """The frame buffer, opened for reading."""
    frames: tuple[FrameRecord, ...]
    """Frames to train on."""
    source: LabelledSet | None
    """Labelled source images, to replay and to score on; None when there are none."""
    reference: SegmentationNetwork | None = None
    """The network of feature distance, frozen, in eval mode, on the device; None without feature distance."""


def load_inputs(spec: RoundSpec, settings: Settings) -> RoundInputs:
    """Read what `spec` names; `settings` are those of the spec. Raises AdapterError, StorageError."""
    if settings.round.threads:
        torch.set_num_threads(settings.round.threads)
    accelerator = Accelerator(cpu=True) if settings.round.device == "cpu" else Accelerator()
    check_replicated(accelerator)
    layout = StateLayout(settings.state)
    registry = CheckpointRegistry(layout.checkpoints)
    student, manifest = load_version(registry, spec.incumbent, accelerator.device)
    if len(manifest.classes) != len(settings.classes):
        raise NetworkMismatch(
            f"version {spec.incumbent} has {len(manifest.classes)} classes, `classes` of the configuration "
            f"{len(settings.classes)}; they must be the same list"
        )
    source = labelled_source(settings, layout)
    buffer = FrameBuffer.open(layout, settings.buffer, writable=False)
    frames = tuple(buffer.records(ids=spec.train_frames))
    if not frames:
        buffer.close()
        raise AdapterError(f"round {spec.round}: none of its {len(spec.train_frames)} training frames is in the buffer")
    released = _released(registry, spec, settings, accelerator)
    reference = None if source is None else reference_network(settings, manifest, released, accelerator.device)
    return RoundInputs(spec, settings, accelerator, registry, student, released, buffer, frames, source, reference)


def _released(
    registry: CheckpointRegistry, spec: RoundSpec, settings: Settings, accelerator: Accelerator
) -> SegmentationNetwork | None:
    """Return the released version if the recipe compares with it."""
    recipe = settings.recipe
    distance = (
        isinstance(recipe, RareClassSettings)
        and recipe.feature_distance_weight > 0.0
        and recipe.advanced.feature_distance_from == "released"
    )
    anchored = recipe.anchor_strength(source_free=settings.source is None) > 0.0
    prior = isinstance(recipe, BnStatisticsSettings) and recipe.statistics_prior > 0.0
    if not (distance or anchored or prior or recipe.name == "cotta"):
        return None
    network, _ = load_version(registry, spec.released, accelerator.device)
    return network.requires_grad_(False)


def labelled_source(settings: Settings, layout: StateLayout) -> LabelledSet | None:
    """Return the imported source set; import it now if the configuration names one that never was imported.

    `mfmd import` leaves it unimported.
    """
    if settings.source is None:
        return None
    source = LabelledSet.open(layout) if LabelledSet.exists(layout) else import_labelled(settings, layout)
    if source.class_pixels.shape[1] != len(settings.classes):
        source = import_labelled(settings, layout)
    return source
