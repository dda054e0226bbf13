"""Every setting of mfmd; with the other files beside it the only place where a default stands.

Each field's docstring says what it is and in which unit; `mfmd config schema` prints them as JSON Schema.
Values come from a YAML file and from environment variables (`MFMD_WATCH__FOLDER=/drop` sets `watch.folder`); see
`configs/load.py`. Relative paths are relative to the YAML file.
"""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from configs.class_list import Classes
from configs.ingest import AdmissionSettings, BufferSettings, VideoSettings, WatchSettings
from configs.nearest import nearest
from configs.section import ConfigPath, Fraction, NotNegativeInt, Positive, PositiveInt, Seconds, Section
from configs.self_training import MfmSettings, RecipeSettings
from configs.serving import ControlSettings, MasksSettings, PublishSettings, ServingSettings
from configs.training import NetworkSettings, OptimSettings, PretrainSettings, RoundSettings

__all__ = [
    "AdmissionSettings",
    "BufferSettings",
    "ControlSettings",
    "GateSettings",
    "LogSettings",
    "MasksSettings",
    "MfmSettings",
    "NetworkSettings",
    "ObserveSettings",
    "OptimSettings",
    "PretrainSettings",
    "PublishSettings",
    "RecipeSettings",
    "RegistrySettings",
    "RoundSettings",
    "ScheduleSettings",
    "Section",
    "ServingSettings",
    "Settings",
    "SourceSettings",
    "VideoSettings",
    "WatchSettings",
]


class SourceSettings(Section):
    """Labelled source images, replayed during rounds and used by the gate as guard."""

    images: ConfigPath
    """Folder of source images."""
    labels: ConfigPath
    """Folder of label PNGs: one index per pixel, the same stem as the image (plus `label_suffix`)."""
    label_suffix: str = ""
    """What stands between the image stem and `.png` in a label's name, for example `_labelTrainIds`."""
    ignore_index: Annotated[int, Field(ge=0, le=255)] = 255
    """Label value that is left out of losses and scores."""
    validation_images: ConfigPath | None = None
    """Folder of held-out source images; without it one image in ten, chosen by name hash, is held out."""
    validation_labels: ConfigPath | None = None
    """Folder of their labels."""

    @model_validator(mode="after")
    def _both_or_none(self) -> Self:
        if (self.validation_images is None) != (self.validation_labels is None):
            raise ValueError("set both validation_images and validation_labels, or neither")
        return self


class ScheduleSettings(Section):
    """When a round starts by itself."""

    enabled: bool = True
    """Off: only `mfmd adapt` and the control API start rounds."""
    new_frames: PositiveInt = 200
    """Start when this many frames were committed since the last round began (frames)."""
    interval_seconds: Seconds = 0.0
    """Also start when this long passed since the last round ended and a new frame came (seconds); 0 is never."""
    min_frames: PositiveInt = 16
    """Never start with fewer frames in the buffer (frames)."""


class GateSettings(Section):
    """When a candidate may serve. The default is to keep the incumbent."""

    source_drop: Fraction = 0.03
    """Veto: source mIoU below the released model's by more than this (mIoU, 0-1)."""
    source_class_drop: Fraction = 0.2
    """Veto: a source class IoU below the released model's by more than this (IoU, 0-1)."""
    vanished_ratio: Fraction = 0.05
    """Veto: a class whose area on hold-out frames falls below this share of the incumbent's."""
    vanished_floor: Fraction = 0.005
    """Classes with less than this area share under the incumbent cannot vanish."""
    agreement_floor: Fraction = 0.3
    """Veto: pixel agreement with the incumbent below this; the step is too large for one round."""
    confidence: Annotated[float, Field(gt=0.5, lt=1.0)] = 0.9
    """One-sided confidence of each vote's paired bootstrap."""
    bootstrap: PositiveInt = 1000
    """Bootstrap resamples over images."""
    votes_with_source: PositiveInt = 3
    """Votes needed of four when labelled source exists; stochastic disagreement must be among them."""
    min_holdout: PositiveInt = 4
    """Fewer held-out frames give the verdict inconclusive."""
    shadow_images: NotNegativeInt = 0
    """An accepted candidate first runs in the shadow, until so many live images were compared with what serves; 0: it
    serves at once. Needs `serving.shadow_fraction`."""
    shadow_seconds: Positive = 600.0
    """Longest wait for them (seconds); then the verdict is inconclusive."""
    shadow_agreement: Fraction = 0.3
    """Veto: share of their pixels with the label that was served below this."""
    shadow_failures: Fraction = 0.01
    """Veto: the candidate raised an error on more than this share of the live images."""


class RegistrySettings(Section):
    """Checkpoints on disk."""

    keep_versions: PositiveInt = 10
    """Versions that served, kept besides serving, previous, released and pinned ones. Of those that never served at
    most the two newest candidates and the two newest imports are kept."""


class ObserveSettings(Section):
    """The low-priority observer of committed frames."""

    enabled: bool = True
    """Off: frames get no embedding and no statistics."""
    poll_seconds: Annotated[float, Field(gt=0)] = 2.0
    """How often new frames are looked for (seconds)."""


class LogSettings(Section):
    """Logs."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    """Least severe level that is written."""
    json_lines: bool = True
    """JSON, one object a line; off writes coloured text."""


class Settings(Section):
    """The whole configuration of one state directory."""

    state: Annotated[ConfigPath, Field(validate_default=True)] = Path("state")
    """State directory: buffer, checkpoints, rounds."""
    classes: Classes
    """A class list by name (cityscapes, camvid, demo) or a list of {name, color: [r, g, b]}."""
    watch: WatchSettings
    """The drop folder."""
    videos: VideoSettings = VideoSettings()
    """Videos in the drop folder."""
    admission: AdmissionSettings = AdmissionSettings()
    """Which readable images enter the buffer."""
    buffer: BufferSettings = BufferSettings()
    """The frame buffer."""
    source: SourceSettings | None = None
    """Labelled source images; without them rounds are source-free."""
    network: NetworkSettings = NetworkSettings()
    """The network that `mfmd pretrain` trains."""
    pretrain: PretrainSettings = PretrainSettings()
    """Source training."""
    mfm: MfmSettings = MfmSettings()
    """Masked Feature Modeling."""
    recipe: RecipeSettings = RecipeSettings()
    """The self-training recipe."""
    round: RoundSettings = RoundSettings()
    """One round."""
    schedule: ScheduleSettings = ScheduleSettings()
    """When rounds start."""
    gate: GateSettings = GateSettings()
    """When a candidate serves."""
    registry: RegistrySettings = RegistrySettings()
    """Checkpoints."""
    serving: ServingSettings = ServingSettings()
    """Inference plane."""
    masks: MasksSettings = MasksSettings()
    """Masks written beside a watched folder."""
    publish: PublishSettings = PublishSettings()
    """Mirrors of what serves, for other servers."""
    control: ControlSettings = ControlSettings()
    """Control plane."""
    observe: ObserveSettings = ObserveSettings()
    """Observer."""
    log: LogSettings = LogSettings()
    """Logs."""

    @model_validator(mode="after")
    def _feature_distance_is_possible(self) -> Self:
        """Thing classes are names of `classes`, and the frozen network is there."""
        names = [entry.name for entry in self.classes]
        for name in self.recipe.thing_classes:
            if name not in names:
                raise ValueError(f"recipe.thing_classes: no class {name!r} in `classes`{nearest(name, names)}")
        distance = self.recipe.feature_distance_weight > 0.0
        if distance and self.recipe.feature_distance_from == "pretrained" and self.network.pretrained is None:
            raise ValueError(
                "recipe.feature_distance_from: 'pretrained' needs network.pretrained, a directory with encoder "
                "weights; set it, or use 'released'"
            )
        return self

    @model_validator(mode="after")
    def _a_shadow_gets_images(self) -> Self:
        if self.gate.shadow_images and not self.serving.shadow_fraction:
            raise ValueError(
                "gate.shadow_images needs serving.shadow_fraction above 0, or no image is ever compared; "
                "set both, or gate.shadow_images to 0"
            )
        return self

    @model_validator(mode="after")
    def _mfm_has_its_images(self) -> Self:
        if self.source is None and self.mfm.enabled and self.mfm.domain != "target" and not self.recipe.test_time:
            raise ValueError(
                f"mfm.domain: {self.mfm.domain} needs labelled source images, and `source` is not set; "
                "set it, or mfm.domain to target"
            )
        return self
