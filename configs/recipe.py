"""Settings of the recipes: one class for each `recipe.name`, with the published constants of that recipe as defaults.

Constants that the original code counts in pixels of one image size are shares here.
"""

from typing import Annotated, Any, ClassVar, Literal, Self, get_args

from pydantic import AfterValidator, BeforeValidator, Field, JsonValue, model_validator

from configs.plugins import RECIPES as PLUGINS
from configs.plugins import checked_name
from configs.section import Fraction, NotNegative, Positive, PositiveInt, Section
from configs.terms import (
    BldaSettings,
    ClassBceSettings,
    ClassConfidenceSettings,
    ComplementarySettings,
    DidaSettings,
    FoundationSettings,
    MfmDaClassBce,
    MfmDaTranslation,
    OmudaClassConfidence,
    OmudaComplementary,
    TranslationSettings,
)

RecipeName = Literal[
    "dacs", "daformer", "hrda", "mic", "omuda", "mfm_da",
    "bn_statistics", "tent", "cotta", "gold", "plugin",
]  # fmt: skip

SOURCE_FREE_ANCHOR = 20.0
"""`recipe.anchor_weight` of a round without source. At the default rates a round takes back e^-0.6, nearly half, of the
distance from the released encoder that it began with, so that endless rounds drift at most 2.2 times as far as one; no
weight can settle further away than about 1/20 (docs/explanation/decisions/0007-source-free-anchor.md)."""


class RecipeBase(Section):
    """What every recipe has."""

    name: RecipeName
    """Which recipe it is."""
    test_time: ClassVar[bool] = False
    """Whether the recipe is a test-time baseline: no source images, no MFM."""
    threshold: Fraction = 0.968
    """A pseudo-label counts as confident from this softmax probability on (0-1). Test-time recipes only report it."""
    margin_top: Fraction = 0.0
    """Share of the height at the top where pseudo-labels do not count (15 of 512 rows in the original)."""
    margin_bottom: Fraction = 0.0
    """Share of the height at the bottom (120 of 512 rows: the bonnet of Cityscapes' car)."""
    margin_left: Fraction = 0.0
    """Share of the width on the left (30 of 2048 columns)."""
    margin_right: Fraction = 0.0
    """Share of the width on the right."""
    margin_of: Literal["crop", "image"] = "crop"
    """What the margins are shares of: each crop (DAFormer), or the whole frame before it is cropped (HRDA, MIC).
    Padding does not count."""

    @model_validator(mode="after")
    def _margins_leave_something(self) -> Self:
        for one, other in (("margin_top", "margin_bottom"), ("margin_left", "margin_right")):
            if (total := getattr(self, one) + getattr(self, other)) >= 1.0:
                raise ValueError(f"{one} + {other} is {total:g}, which leaves no pseudo-label; it must be below 1")
        return self

    def anchor_strength(self, *, source_free: bool) -> float:
        """Return the pull towards the released weights in a round; 0: none."""
        return 0.0

    def least_frames(self) -> int:
        """Return how many target frames a round needs to train on."""
        return 1


class SelfTrainingAdvanced(Section):
    """Rarely changed settings of the recipe."""

    source_weight: Positive = 1.0
    """Weight of the loss on the labels of source images; above 1 a round holds on to the source more. The papers have
    1; other weights are ours. Losses that share its pass, and source pixels in the mix, keep their own."""
    source_jitter: Fraction = 0.0
    """Strength of colour jitter on the replayed source images."""
    classmix: bool = True
    """Paste half of the source classes over the target image and train on the mix; off trains on the plain target."""
    jitter_probability: Fraction = 0.8
    """Probability of colour jitter, drawn once a step."""
    blur_probability: Fraction = 0.5
    """Probability of Gaussian blur (sigma 0.15-1.15 pixels), drawn once a step."""
    separate_steps: bool = False
    """Each loss has an optimizer step of its own, with a batch of its own, one after the other; off: each step has all
    of them."""
    class_bce: ClassBceSettings = ClassBceSettings()
    translation: TranslationSettings = TranslationSettings()
    complementary: ComplementarySettings = ComplementarySettings()
    blda: BldaSettings = BldaSettings()
    dida: DidaSettings = DidaSettings()
    class_confidence: ClassConfidenceSettings = ClassConfidenceSettings()
    foundation: FoundationSettings = FoundationSettings()


class SelfTrainingSettings(RecipeBase):
    """What the recipes with a teacher and source images have."""

    ema_decay: Fraction = 0.99
    """Teacher decay alpha; step t uses min(1 - 1/(t+1), alpha). cotta uses alpha itself."""
    jitter: Fraction = 0.2
    """Strength of colour jitter on the mixed image (brightness, contrast, saturation, hue)."""
    class_balance: NotNegative = 0.0
    """Exponent of the class weights of true labels, as `pretrain.advanced.class_balance`: without them a network that
    was trained with them loses its rare classes. Pseudo-labels are not weighed by class. 0 weighs every pixel alike, as
    the papers do."""
    thing_classes: tuple[str, ...] = ()
    """Names of the countable classes. Feature distance counts them only; empty: every class. Complementary masks by
    region need them."""
    anchor_weight: NotNegative | None = None
    """Pull towards the released weights after each step, a decoupled decay (learning rate x this x distance; L2-SP, Li
    et al. 2018), which limits drift. 0 is off. None: 0 with source images, 20 without."""
    advanced: SelfTrainingAdvanced = SelfTrainingAdvanced()

    def anchor_strength(self, *, source_free: bool) -> float:
        """`anchor_weight`; if it is None, `SOURCE_FREE_ANCHOR` without source images and 0 with them."""
        if self.anchor_weight is not None:
            return self.anchor_weight
        return SOURCE_FREE_ANCHOR if source_free else 0.0


class DacsSettings(SelfTrainingSettings):
    """DACS: self-training on images mixed across domains."""

    name: Literal["dacs"] = "dacs"
    """dacs (Tranheden 2021), daformer (Hoyer 2022), hrda (Hoyer 2022), mic (Hoyer 2023), omuda (a reading of the
    abstract of Ou 2025), mfm_da (Jiang 2025; few target images). For comparison and for small machines: bn_statistics
    (Schneider 2020), tent (Wang 2021), cotta (Wang 2022), all without source, and gold (Lai 2026)."""


class DaformerAdvanced(SelfTrainingAdvanced):
    """Rarely changed settings of the recipe."""

    feature_distance_from: Literal["pretrained", "released"] = "released"
    """The frozen network: the released version, or the encoder weights of `network.pretrained` (ImageNet's, in the
    original)."""
    rare_class_temperature: Positive = 0.01
    """Temperature T of the softmax over 1 - frequency; smaller is more even over rare classes."""
    rare_class_image_share: Fraction = 3000 / (1914 * 1052)
    """An image is drawn for a class that fills more than this share of it: 3,000 pixels of GTA's 1914x1052."""
    rare_class_crop_share: Fraction = 1500 / 512**2
    """Share of the crop that the class must exceed, or the crop is drawn again, 10 times at most: 1,500 pixels of
    512x512, and 6,000 of HRDA's 1024x1024."""
    feature_distance_share: Fraction = 0.75
    """A cell of the deepest map counts when one class fills at least this share of it."""


class RareClassSettings(SelfTrainingSettings):
    """What daformer, hrda and mic add to dacs: rare classes and things."""

    ema_decay: Fraction = 0.999
    margin_top: Fraction = 15 / 512
    margin_bottom: Fraction = 120 / 512
    rare_class_sampling: bool = True
    """Draw source images by class, rare classes more often (DAFormer, eq. 5-6)."""
    feature_distance_weight: NotNegative = 0.005
    """Weight of the distance between the student's and a frozen network's deepest features on thing classes of the
    source (DAFormer, eq. 9); 0 is off."""
    advanced: DaformerAdvanced = DaformerAdvanced()


class DaformerSettings(RareClassSettings):
    """DAFormer: DACS with rare-class sampling and feature distance."""

    name: Literal["daformer"] = "daformer"


class WholeImageSettings(RareClassSettings):
    """Margins of hrda and mic: 30 and 240 of 1024 rows, 30 of 2048 columns, of the whole frame."""

    margin_left: Fraction = 30 / 2048
    margin_right: Fraction = 30 / 2048
    margin_of: Literal["crop", "image"] = "image"


class HrdaSettings(WholeImageSettings):
    """HRDA: DAFormer's losses on a network with `network.multi_resolution`."""

    name: Literal["hrda"] = "hrda"


class MicAdvanced(DaformerAdvanced):
    """Rarely changed settings of the recipe."""

    masked_image_block: Fraction = 0.0625
    """Side of a masked block as a share of the shorter crop side: 64 of 1024, 32 of 512."""
    masked_image_ratio: Fraction = 0.7
    """Probability that a block is masked (0-1)."""
    masked_tokens: bool = False
    """Mask tokens of a DINOv2 or DINOv3 instead of blocks of the image, with the same probability, as VFM-UDA does
    (Englert et al. 2024, arXiv 2406.09896)."""


class MicSettings(WholeImageSettings):
    """MIC: DAFormer or HRDA (with `network.multi_resolution`) and masked-image consistency."""

    name: Literal["mic"] = "mic"
    masked_image_weight: NotNegative = 1.0
    """Weight of the consistency loss on the target image with masked blocks; 0 is off."""
    advanced: MicAdvanced = MicAdvanced()


class OmudaAdvanced(DaformerAdvanced):
    """Rarely changed settings of the recipe."""

    complementary: OmudaComplementary = OmudaComplementary()
    class_confidence: OmudaClassConfidence = OmudaClassConfidence()


class OmudaSettings(RareClassSettings):
    """OMUDA as its abstract reads: DAFormer, masks by region, weights by class, and distillation if an encoder is set.

    Ou et al., arXiv 2512.12303. Only the abstract is public: how each level works is ours.
    """

    name: Literal["omuda"] = "omuda"
    advanced: OmudaAdvanced = OmudaAdvanced()


class MfmDaAdvanced(SelfTrainingAdvanced):
    """Rarely changed settings of the recipe."""

    target_images: PositiveInt = 10
    """A round needs so many target images to train on, beside the held-out ones: as many as the paper has. At most
    `buffer.capacity_frames`."""
    separate_steps: bool = True
    class_bce: MfmDaClassBce = MfmDaClassBce()
    translation: MfmDaTranslation = MfmDaTranslation()


class MfmDaSettings(SelfTrainingSettings):
    """MFM-DA (Jiang et al., arXiv 2503.00802), its second stage: source and its translation, aligned; few targets.

    MFM means "medical foundation model" there. The translation takes the place of the paper's diffusion model.
    """

    name: Literal["mfm_da"] = "mfm_da"
    advanced: MfmDaAdvanced = MfmDaAdvanced()

    def least_frames(self) -> int:
        """`advanced.target_images`."""
        return self.advanced.target_images


class _TestTime(RecipeBase):
    """What the test-time baselines have."""

    test_time: ClassVar[bool] = True


class BnStatisticsSettings(_TestTime):
    """BN statistics: the BatchNorm statistics of the target, nothing learnt."""

    name: Literal["bn_statistics"] = "bn_statistics"
    statistics_prior: NotNegative = 0.0
    """Weight of the released version's BatchNorm statistics beside the target's (crops; N of Schneider et al. 2020, who
    use 16 for few images); 0 uses the target's alone."""


class TentSettings(_TestTime):
    """TENT: scale and shift of the normalisation layers, trained on the entropy of the answers."""

    name: Literal["tent"] = "tent"


class CottaAdvanced(Section):
    """Rarely changed settings of the recipe."""

    augment_below: Fraction = 0.69
    """Below this mean confidence of the released model on a crop, the crop's pseudo-label is averaged over scales and
    mirror images; 0 never averages and saves those passes."""


class CottaSettings(_TestTime):
    """CoTTA: an averaged teacher, augmentation-averaged pseudo-labels, random restoration."""

    name: Literal["cotta"] = "cotta"
    ema_decay: Fraction = 0.999
    """Teacher decay alpha; step t uses min(1 - 1/(t+1), alpha). cotta uses alpha itself."""
    restore_probability: Fraction = 0.01
    """Probability that a weight is set back to the released one after a step."""
    augment_scales: Annotated[tuple[Positive, ...], Field(min_length=1)] = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0)
    """Scales of the crop that are averaged over, each as it is and mirrored. The published seven cost as much as 24
    passes of the teacher a step; `[1.0]`, one pass, is for small machines."""
    advanced: CottaAdvanced = CottaAdvanced()


class GoldAdvanced(SelfTrainingAdvanced):
    """Rarely changed settings of the recipe."""

    directions: PositiveInt = 64
    """Directions of the classifier that get a scale; as many as there are classes at most (GOLD: 64 to 256)."""
    gram_momentum: Fraction = 0.98
    """Share of the matrix of directions that stays at each batch (GOLD)."""
    refresh_steps: PositiveInt = 10
    """Steps after which the directions are computed anew."""


class GoldSettings(SelfTrainingSettings):
    """GOLD-like: normalisation layers and scales of the classifier's directions learn, by the losses of DACS."""

    name: Literal["gold"] = "gold"
    advanced: GoldAdvanced = GoldAdvanced()


def _is_plugin(name: str) -> str:
    if name in get_args(RecipeName):
        raise ValueError(f"{name!r} is a recipe of mfmd (recipe.name); rename the entry point")
    return checked_name(name, PLUGINS)


class PluginAdvanced(SelfTrainingAdvanced):
    """Rarely changed settings of the recipe."""

    plugin: Annotated[str, AfterValidator(_is_plugin)]
    """Name of the plug-in, an entry point of `mfmd.recipes`."""
    options: dict[str, JsonValue] = Field(default_factory=dict)
    """What the plug-in reads as `inputs.recipe.advanced.options`."""


class PluginSettings(SelfTrainingSettings):
    """A recipe of another package, named by `recipe.advanced.plugin`."""

    name: Literal["plugin"] = "plugin"
    advanced: PluginAdvanced


def _named(values: Any) -> Any:
    return {"name": "dacs", **values} if isinstance(values, dict) else values


RecipeSettings = Annotated[
    DacsSettings
    | DaformerSettings
    | HrdaSettings
    | MicSettings
    | OmudaSettings
    | MfmDaSettings
    | BnStatisticsSettings
    | TentSettings
    | CottaSettings
    | GoldSettings
    | PluginSettings,
    Field(discriminator="name"),
    BeforeValidator(_named),
]
"""The self-training recipe that MFM sits on; `name` says which."""
RECIPES: dict[str, type[RecipeBase]] = {
    recipe.model_fields["name"].default: recipe for recipe in get_args(get_args(RecipeSettings)[0])
}
"""By `recipe.name`."""
