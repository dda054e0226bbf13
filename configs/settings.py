"""Every setting of mfmd; with the other files beside it the only place where a default stands.

`configs/X.py` holds the section `x` and the small sections that follow it in `Settings`; `observe` and `log` are here.
Docstrings name the meaning and unit of each field; `mfmd config schema` prints them. `configs/load.py` reads values.
"""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from configs.buffer import BufferSettings, SourceSettings
from configs.canary import CanarySettings
from configs.class_list import Classes
from configs.errors import nearest
from configs.gate import (
    ConditionsSettings,
    DriftSettings,
    GateSettings,
    ProbationSettings,
    RecallSettings,
    RegistrySettings,
)
from configs.mfm import MfmSettings
from configs.network import NetworkSettings, PretrainSettings
from configs.notify import Webhooks
from configs.recipe import DacsSettings, MfmDaSettings, RareClassSettings, RecipeSettings, SelfTrainingSettings
from configs.round import RoundSettings, ScheduleSettings
from configs.section import Section, StatePath, meet
from configs.serving import ControlSettings, MasksSettings, PublishSettings, ServingSettings
from configs.watch import AdmissionSettings, VideoSettings, WatchSettings


class ObserveAdvanced(Section):
    """Rarely changed settings of the observer."""

    poll_seconds: Annotated[float, Field(gt=0)] = 2.0
    """How often the observer looks for new frames (seconds)."""
    looks: bool = True
    """Off: the page shows no frame, for buffers that not everybody who reaches the control plane may see."""


class ObserveSettings(Section):
    """The low-priority observer of committed frames."""

    enabled: bool = True
    """Off: frames get no embedding and no statistics."""
    advanced: ObserveAdvanced = ObserveAdvanced()


class LogSettings(Section):
    """Logs."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    """Least severe level that is written."""
    json_lines: bool = True
    """JSON, one object a line; off writes text, coloured on a terminal only."""


class Settings(Section):
    """The whole configuration of one state directory."""

    state: Annotated[StatePath, Field(validate_default=True)] = Path("state")
    """State directory: buffer, checkpoints, rounds."""
    classes: Classes
    """A class list by name (acdc, ade20k, bdd100k, camvid, cityscapes, demo, mapillary, pascal_context, voc), names
    (`[background, vessel]`), or {name, color: [r, g, b]} of each class. Without a colour it gets one that the
    colour-blind can tell from the others."""
    watch: WatchSettings
    videos: VideoSettings = VideoSettings()
    admission: AdmissionSettings = AdmissionSettings()
    buffer: BufferSettings = BufferSettings()
    source: SourceSettings | None = None
    canary: CanarySettings = CanarySettings()
    network: NetworkSettings = NetworkSettings()
    pretrain: PretrainSettings = PretrainSettings()
    mfm: MfmSettings = MfmSettings()
    recipe: RecipeSettings = DacsSettings()
    """The self-training recipe."""
    round: RoundSettings = RoundSettings()
    schedule: ScheduleSettings = ScheduleSettings()
    gate: GateSettings = GateSettings()
    conditions: ConditionsSettings = ConditionsSettings()
    probation: ProbationSettings = ProbationSettings()
    recall: RecallSettings = RecallSettings()
    drift: DriftSettings = DriftSettings()
    registry: RegistrySettings = RegistrySettings()
    serving: ServingSettings = ServingSettings()
    masks: MasksSettings = MasksSettings()
    publish: PublishSettings = PublishSettings()
    notify: Webhooks = ()
    """Webhooks that are told what happens, each {url: https://..., on: [promoted, rolled_back, recalled, rejections,
    drift, child_down]}; without `on` all of it."""
    control: ControlSettings = ControlSettings()
    observe: ObserveSettings = ObserveSettings()
    log: LogSettings = LogSettings()

    @model_validator(mode="after")
    def _things_are_classes(self) -> Self:
        recipe, names = self.recipe, [entry.name for entry in self.classes]
        for name in recipe.thing_classes if isinstance(recipe, SelfTrainingSettings) else ():
            if name not in names:
                raise ValueError(f"recipe.thing_classes: no class {name!r} in `classes`{nearest(name, names)}")
        return self

    @model_validator(mode="after")
    def _regions_are_known(self) -> Self:
        recipe = self.recipe
        if not isinstance(recipe, SelfTrainingSettings) or recipe.thing_classes:
            return self
        masks = recipe.advanced.complementary
        if masks.enabled and masks.by_region:
            raise ValueError(
                f"recipe.thing_classes: masks by region (recipe.name {recipe.name}, "
                "recipe.advanced.complementary.by_region) need the names of the countable classes; list those of "
                "`classes` that are, or set by_region to false"
            )
        return self

    @model_validator(mode="after")
    def _feature_distance_is_possible(self) -> Self:
        recipe = self.recipe
        if not isinstance(recipe, RareClassSettings):
            return self
        wanted = recipe.feature_distance_weight > 0.0 and recipe.advanced.feature_distance_from == "pretrained"
        if wanted and self.network.pretrained is None:
            raise ValueError(
                "recipe.advanced.feature_distance_from: 'pretrained' needs network.pretrained, a directory with "
                "encoder weights; set it, or use 'released'"
            )
        return self

    @model_validator(mode="after")
    def _blda_has_its_images(self) -> Self:
        recipe = self.recipe
        if self.source is None and isinstance(recipe, SelfTrainingSettings) and recipe.advanced.blda.enabled:
            raise ValueError(
                "recipe.advanced.blda: needs labelled source images, whose logits are the anchor, and `source` is not "
                "set; set it, or enabled to false"
            )
        return self

    @model_validator(mode="after")
    def _translation_has_its_images(self) -> Self:
        recipe = self.recipe
        if self.source is not None or not isinstance(recipe, SelfTrainingSettings):
            return self
        if isinstance(recipe, MfmDaSettings) or recipe.advanced.translation.enabled:
            raise ValueError(
                "recipe.advanced.translation (recipe.name mfm_da has it on): translates labelled source images, and "
                "`source` is not set; set it, or take another recipe with enabled: false"
            )
        return self

    @model_validator(mode="after")
    def _the_buffer_holds_what_a_round_needs(self) -> Self:
        needed, capacity = self.recipe.least_frames(), self.buffer.capacity_frames
        if needed > capacity:
            raise ValueError(
                f"recipe.advanced.target_images: a round would need {needed} frames to train on, and the buffer holds "
                f"{capacity} (buffer.capacity_frames); lower the one, or raise the other"
            )
        return self

    @model_validator(mode="after")
    def _nested_are_classes(self) -> Self:
        recipe, names = self.recipe, [entry.name for entry in self.classes]
        pairs = recipe.advanced.class_bce.nested if isinstance(recipe, SelfTrainingSettings) else ()
        for name in (name for pair in pairs for name in pair):
            if name not in names:
                where = "recipe.advanced.class_bce.nested"
                raise ValueError(f"{where}: no class {name!r} in `classes`{nearest(name, names)}")
        return self

    @model_validator(mode="after")
    def _labels_mean_classes(self) -> Self:
        names = [entry.name for entry in self.classes]
        if canary := self.canary.as_source(self.source):
            canary.mapped(names, "canary.advanced.label_map" if self.canary.advanced.label_format else None)
        if self.source is None:
            return self
        if self.source.ignore_index < len(names):
            raise ValueError(
                f"source.ignore_index: {self.source.ignore_index} is the class {names[self.source.ignore_index]!r}; "
                f"set {len(names)} or more, and say what label values mean with source.label_map"
            )
        self.source.mapped(names)
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
    def _the_gate_has_its_evidence(self) -> Self:
        if self.gate.policy == "source" and self.source is None:
            raise ValueError("gate.policy: 'source' needs labelled source images; set `source`, or use 'auto'")
        return self

    @model_validator(mode="after")
    def _the_gate_weighs_classes(self) -> Self:
        names = [entry.name for entry in self.classes]
        for name in self.gate.advanced.class_weights:
            if name not in names:
                raise ValueError(f"gate.advanced.class_weights: no class {name!r} in `classes`{nearest(name, names)}")
        if not any(self.gate.weights(names) or names):
            raise ValueError("gate.advanced.class_weights: every class has weight 0; give one more than 0")
        return self

    @model_validator(mode="after")
    def _planes_have_ports_of_their_own(self) -> Self:
        one, other = self.control, self.serving
        if other.enabled and one.port == other.port and one.port and meet(one.host, other.host):
            raise ValueError(
                f"control.port and serving.port are both {one.port} (control.host {one.host}, serving.host "
                f"{other.host}); set another one, or 0 to let the system choose"
            )
        return self

    @model_validator(mode="after")
    def _mfm_has_its_images(self) -> Self:
        domain = self.mfm.ablation.domain
        if self.source is None and self.mfm.enabled and domain != "target" and not self.recipe.test_time:
            raise ValueError(
                f"mfm.ablation.domain: {domain} needs labelled source images, and `source` is not set; "
                "set it, or mfm.ablation.domain to target"
            )
        return self
