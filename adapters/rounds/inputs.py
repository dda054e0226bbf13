"""Inputs of a round, read from its spec: networks, frames, source images, processes."""

from dataclasses import dataclass
from typing import Literal

import torch
from accelerate.accelerator import Accelerator

from adapters.checkpoints.checkpoint import load_version
from adapters.errors import AdapterError, NetworkMismatch
from adapters.networks.build import build_network
from adapters.networks.network import SegmentationNetwork
from adapters.networks.parallel import check_replicated
from configs.network import Architecture, is_own
from configs.recipe import BnStatisticsSettings, RareClassSettings, RecipeBase
from configs.settings import Settings
from storage.buffer.catalog_records import FrameRecord
from storage.buffer.frames import FrameBuffer
from storage.canary.images import CanaryImage, import_canary
from storage.errors import StorageError
from storage.layout import StateLayout
from storage.registry.manifest import Manifest
from storage.registry.registry import CheckpointRegistry
from storage.rounds.records import RoundSpec
from storage.source.labelled import LabelledSet
from storage.source.labelled_import import import_labelled


@dataclass(frozen=True, slots=True)
class RoundInputs:
    """Everything a round reads; close `buffer` when done."""

    spec: RoundSpec
    settings: Settings
    accelerator: Accelerator
    registry: CheckpointRegistry
    student: SegmentationNetwork
    """The weights that student and teacher start from (`RoundSpec.start`), on the device, in eval mode."""
    released: SegmentationNetwork | None
    """The released version, frozen, in eval mode, on the device; None when the recipe does not use it."""
    buffer: FrameBuffer
    frames: tuple[FrameRecord, ...]
    source: LabelledSet | None
    """Labelled source images, to replay and to score on; None when there are none."""
    reference: SegmentationNetwork | None = None
    """The network of feature distance, frozen, in eval mode, on the device; None without feature distance."""


def load_inputs(spec: RoundSpec, settings: Settings) -> RoundInputs:
    """Read what `spec` names; `settings` are those of the spec. Raises AdapterError, StorageError."""
    if settings.round.advanced.threads:
        torch.set_num_threads(settings.round.advanced.threads)
    accelerator = Accelerator(cpu=True) if settings.round.device == "cpu" else Accelerator()
    check_replicated(accelerator)
    layout = StateLayout(settings.state)
    registry = CheckpointRegistry(layout.checkpoints)
    student, manifest = load_version(registry, spec.start, accelerator.device)
    if len(manifest.classes) != len(settings.classes):
        raise NetworkMismatch(
            f"version {spec.start} has {len(manifest.classes)} classes, `classes` of the configuration "
            f"{len(settings.classes)}; they must be the same list"
        )
    source = labelled_source(settings, layout)
    buffer = FrameBuffer.open(layout, settings.buffer, writable=False)
    frames = tuple(buffer.records(ids=spec.train_frames))
    if not frames:
        buffer.close()
        raise AdapterError(f"round {spec.round}: none of its {len(spec.train_frames)} training frames is in the buffer")
    released = reference = None
    if _compares_with_released(settings):
        released = load_version(registry, spec.released, accelerator.device)[0].requires_grad_(False)
    if source is not None:
        reference = reference_network(settings, manifest, released, accelerator.device)
    return RoundInputs(spec, settings, accelerator, registry, student, released, buffer, frames, source, reference)


def _compares_with_released(settings: Settings) -> bool:
    recipe = settings.recipe
    return (
        _distance_from(recipe) == "released"
        or recipe.anchor_strength(source_free=settings.source is None) > 0.0
        or (isinstance(recipe, BnStatisticsSettings) and recipe.statistics_prior > 0.0)
        or recipe.name == "cotta"
    )


def _distance_from(recipe: RecipeBase) -> Literal["pretrained", "released"] | None:
    """Return what feature distance (DAFormer, arXiv 2111.14887) measures against; None when it is off."""
    if not isinstance(recipe, RareClassSettings) or recipe.feature_distance_weight == 0.0:
        return None
    return recipe.advanced.feature_distance_from


def reference_network(
    settings: Settings, incumbent: Manifest, released: SegmentationNetwork | None, device: torch.device
) -> SegmentationNetwork | None:
    """Return `released`, or the incumbent's architecture with the weights of `network.pretrained`, on `device`.

    Only its `encode` is meaningful. It is frozen and in eval mode. None when the recipe has no feature distance. Raises
    NetworkMismatch when those weights belong to another encoder than the incumbent's, UnsupportedModel when they cannot
    be read.
    """
    kind = _distance_from(settings.recipe)
    if kind != "pretrained":
        return None if kind is None else released
    architecture = Architecture.model_validate(incumbent.network)
    if architecture.name == "huggingface" or is_own(architecture.name):
        raise NetworkMismatch(
            "recipe.advanced.feature_distance_from: 'pretrained' is not possible with an imported or own network, "
            "whose encoder has no weights of its own at network.pretrained; set it to 'released'"
        )
    architecture = architecture.model_copy(update={"pretrained": settings.network.pretrained})
    return build_network(architecture, len(incumbent.classes)).requires_grad_(False).to(device).eval()


def unseen_canary(inputs: RoundInputs) -> tuple[list[CanaryImage], str]:
    """Return the canary images that the round did not train on, and why they cannot be read, if so.

    One that was added while the round trained may be among its frames.
    """
    trained = {frame.crc32 for frame in inputs.frames}
    try:
        images = import_canary(inputs.settings, StateLayout(inputs.settings.state))
    except StorageError as error:
        return [], str(error)
    return [image for image in images if image.crc32 not in trained], ""


def labelled_source(settings: Settings, layout: StateLayout) -> LabelledSet | None:
    """Return the imported source set; import it now if there is none, or if label values meant other classes then.

    `mfmd import` leaves it unimported. Raises SourceRefused when the files are gone or refused meanwhile.
    """
    if settings.source is None:
        return None
    if LabelledSet.exists(layout) and (source := LabelledSet.open(layout)).read_as(settings):
        return source
    return import_labelled(settings, layout)
