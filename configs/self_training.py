"""Settings of self-training: Masked Feature Modeling, and the recipe that it sits on."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from configs.section import Fraction, NotNegative, Positive, PositiveInt, Section

RecipeName = Literal["dacs", "daformer", "hrda", "mic", "bn_statistics", "tent", "cotta"]

_DAFORMER: dict[str, Any] = {
    "ema_decay": 0.999,
    "rare_class_sampling": True,
    "feature_distance_weight": 0.005,
    "margin_top": 15 / 512,
    "margin_bottom": 120 / 512,
}
_WHOLE_IMAGE: dict[str, Any] = {
    **_DAFORMER,  # 30 and 240 of 1024 rows are the same shares of the height
    "margin_left": 30 / 2048,
    "margin_right": 30 / 2048,
    "margin_of": "image",
}
RECIPE_DEFAULTS: dict[str, dict[str, Any]] = {
    "dacs": {},
    "daformer": _DAFORMER,
    "hrda": _WHOLE_IMAGE,
    "mic": {**_WHOLE_IMAGE, "masked_image_weight": 1.0},
    "bn_statistics": {},
    "tent": {},
    "cotta": {"ema_decay": 0.999},
}
"""Published constants of each recipe (docs/explanation/sources.md). They fill the fields that a configuration omits."""

SOURCE_FREE_ANCHOR = 20.0
"""`recipe.anchor_weight` of a round without source. At the default rates a round takes back e^-0.6, nearly half, of the
distance from the released encoder that it began with, so that endless rounds drift at most 2.2 times as far as one; no
weight can settle further away than about 1/20 (docs/explanation/decisions/0007-source-free-anchor.md)."""


class MfmSettings(Section):
    """Masked Feature Modeling (Zhou et al., arXiv 2509.13801): the training-only branch.

    Figures are mIoU of the paper's ablations (DACS, DeepLabV2-R101, GTA to Cityscapes); the
    defaults score 55.9 there, the bare recipe 52.1.
    """

    enabled: bool = True
    """Run the branch; off leaves the bare recipe (52.1). Test-time recipes (bn_statistics, tent, cotta) never do."""
    mask_ratio: Fraction = 0.4
    """Probability that a cell of the feature grid is masked (0-1); 0.2 / 0.4 / 0.6 / 0.8: 54.3 / 55.9 / 55.2 / 54.1.
    0 trains on the plain target, without a Rebuilder: the control that shows what the masking does."""
    grid: PositiveInt = 16
    """Cells on the shorter side of the mask grid, never more than the deepest map has; the cells are square. 8 / 16 /
    32: 55.6 / 55.9 / 54.1."""
    dim: PositiveInt = 512
    """Token width of the Rebuilder (channels, divisible by 4 and by `heads`); 128 / 256 / 512 / 768: 54.7 / 55.1 / 55.9
    / 53.6."""
    blocks: PositiveInt = 2
    """Transformer blocks of the Rebuilder; 1 / 2 / 4 / 8: 55.4 / 55.9 / 54.4 / 52.9."""
    heads: Annotated[PositiveInt, Field(validate_default=True)] = 16
    """Attention heads; `dim` is a multiple of them."""
    weight: NotNegative = 1.0
    """Factor lambda of the branch's loss; 0.1 / 0.5 / 1 / 2 / 10: 54.7 / 55.8 / 55.9 / 55.4 / 52.1."""
    learning_rate: Positive = 2e-4
    """AdamW learning rate of the Rebuilder."""
    domain: Literal["target", "source", "both"] = "target"
    """Whose images the branch rebuilds; target 55.9, source (with true labels) 52.9, both 55.2. Without source images
    only target is possible."""
    reconstruction: Literal["classify", "teacher_feature", "student_feature", "pixels", "mask_only"] = "classify"
    """What the rebuilt cells must match: pixel classes through the decoder (55.9), the teacher's features (53.5), the
    student's own unmasked features (53.7), the image's pixels (51.8); mask_only classifies with the masked cells left
    empty, zero, without a Rebuilder (51.9)."""
    detach_encoder: bool = False
    """Keep the branch's gradient out of the encoder: it trains decoder and Rebuilder only (54.2)."""
    freeze_decoder: bool = False
    """Keep the branch's gradient out of the decoder: it trains encoder and Rebuilder only (54.9)."""

    @field_validator("dim")
    @classmethod
    def _fits_the_position_code(cls, dim: int) -> int:
        if dim % 4:
            raise ValueError(f"must be a multiple of 4 (sines and cosines of row and column); {dim - dim % 4 + 4} is")
        return dim

    @field_validator("heads")
    @classmethod
    def _divides_the_width(cls, heads: int, info: ValidationInfo) -> int:
        dim = info.data.get("dim", heads)  # missing when it was refused itself
        if dim % heads:
            raise ValueError(f"must divide mfm.dim, which is {dim}")
        return heads

    @model_validator(mode="after")
    def _trains_what_serves(self) -> Self:
        """Refuse switches that leave nothing to learn, rather than spend a pass a step on it."""
        if self.mask_ratio == 0.0 and not self.classifies:
            raise ValueError(f"reconstruction: {self.reconstruction} looks at masked cells, and mask_ratio 0 has none")
        if self.detach_encoder and (self.freeze_decoder or not self.classifies):
            raise ValueError(
                "detach_encoder: with freeze_decoder, or with a target that needs no decoder, the branch would train "
                "nothing that serves"
            )
        return self

    @property
    def classifies(self) -> bool:
        """Whether the decoder reads the branch's features."""
        return self.reconstruction in ("classify", "mask_only")

    @property
    def rebuilds(self) -> bool:
        """Whether there is a Rebuilder with anything in it."""
        return self.mask_ratio > 0.0 and self.reconstruction != "mask_only"


class RecipeSettings(Section):
    """The self-training recipe that MFM sits on.

    Defaults of fields that a recipe publishes follow `name` (`RECIPE_DEFAULTS` in configs/self_training.py). Constants
    of the original code that hold for one image size only are shares here.
    """

    name: RecipeName = "dacs"
    """Recipe: dacs (Tranheden 2021), daformer (Hoyer 2022), hrda (Hoyer 2022), mic (Hoyer 2023); for comparison and for
    small machines, source-free: bn_statistics, tent (Wang 2021), cotta (Wang 2022)."""
    ema_decay: Fraction = 0.99
    """Teacher decay alpha; step t uses min(1 - 1/(t+1), alpha), cotta alpha itself. 0.999 for daformer, hrda, mic and
    cotta."""
    threshold: Fraction = 0.968
    """A pseudo-label counts as confident from this softmax probability on (0-1). Test-time recipes only report it."""
    classmix: bool = True
    """Paste half of the source classes over the target image and train on the mix; off trains on the plain target."""
    jitter: Fraction = 0.2
    """Strength of colour jitter on the mixed image (brightness, contrast, saturation, hue)."""
    jitter_probability: Fraction = 0.8
    """Probability of colour jitter, drawn once a step."""
    blur_probability: Fraction = 0.5
    """Probability of Gaussian blur (sigma 0.15-1.15 pixels), drawn once a step."""
    source_jitter: Fraction = 0.0
    """Strength of colour jitter on the replayed source images."""
    class_balance: NotNegative = 0.0
    """Exponent of the class weights of true labels, as `pretrain.class_balance`: a network trained with them loses its
    rare classes without. Pseudo-labels are never weighed by class; 0 weighs every pixel alike, as the papers do."""
    rare_class_sampling: bool = False
    """Draw source images by class, rare classes more often (DAFormer, eq. 5-6); on for daformer, hrda and mic."""
    rare_class_temperature: Positive = 0.01
    """Temperature T of the softmax over 1 - frequency; smaller is more even over rare classes."""
    rare_class_image_share: Fraction = 3000 / (1914 * 1052)
    """An image is drawn for a class that fills more than this share of it: 3,000 pixels of GTA's 1914x1052."""
    rare_class_crop_share: Fraction = 1500 / 512**2
    """Share of the crop that the class must exceed, or the crop is drawn again, 10 times at most: 1,500 pixels of
    512x512, and 6,000 of HRDA's 1024x1024."""
    feature_distance_weight: NotNegative = 0.0
    """Weight of the distance between the student's and a frozen network's deepest features on thing classes of the
    source (DAFormer, eq. 9); 0 is off, 0.005 for daformer, hrda and mic."""
    feature_distance_share: Fraction = 0.75
    """A cell of the deepest map counts when one class fills at least this share of it."""
    feature_distance_from: Literal["pretrained", "released"] = "released"
    """The frozen network: the released version, or the encoder weights of `network.pretrained` (ImageNet's, in the
    original)."""
    thing_classes: tuple[str, ...] = ()
    """Names of the countable classes of feature distance; empty: every class."""
    margin_top: Fraction = 0.0
    """Share of the height at the top where pseudo-labels do not count (15 of 512 rows in the original)."""
    margin_bottom: Fraction = 0.0
    """Share of the height at the bottom (120 of 512 rows: the bonnet of Cityscapes' car)."""
    margin_left: Fraction = 0.0
    """Share of the width on the left (30 of 2048 columns)."""
    margin_right: Fraction = 0.0
    """Share of the width on the right."""
    margin_of: Literal["crop", "image"] = "crop"
    """What the margins are shares of: each crop (DAFormer), or the whole frame before it is cropped (HRDA, MIC); of a
    crop or frame with padding, the part that holds image."""
    masked_image_weight: NotNegative = 0.0
    """Weight of the consistency loss on the target image with masked blocks (MIC); 0 is off, 1 for mic. It may be put
    on any recipe that learns from a teacher."""
    masked_image_block: Fraction = 0.0625
    """Side of a masked block as a share of the shorter crop side: 64 of 1024, 32 of 512."""
    masked_image_ratio: Fraction = 0.7
    """Probability that a block is masked (0-1)."""
    detail_loss_weight: Fraction = 0.1
    """HRDA: weight of the detail crop's own loss; the fused prediction has the rest."""
    anchor_weight: NotNegative | None = None
    """Pull towards the released weights after each step, as a decoupled decay (learning rate x this x distance; L2-SP,
    Li et al. 2018), which keeps a round from drifting. 0 is off; none: 0 with source images, 20 without. The test-time
    recipes have no such pull."""
    statistics_prior: NotNegative = 0.0
    """bn_statistics: crops that the released version's BatchNorm statistics count for beside the target's (N of
    Schneider et al. 2020, who use 16 when there are few images); 0 takes the target's alone."""
    restore_probability: Fraction = 0.01
    """CoTTA: probability that a weight is set back to the released one after a step."""
    augment_below: Fraction = 0.69
    """CoTTA: below this mean confidence of the released model on a crop, the crop's pseudo-label is averaged over
    scales and mirror images; 0 never averages and saves those passes."""
    augment_scales: Annotated[tuple[Positive, ...], Field(min_length=1)] = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0)
    """CoTTA: scales of the crop that are averaged over, each as it is and mirrored. The published seven cost as much as
    24 passes of the teacher a step; `[1.0]`, one pass, is for small machines."""

    @model_validator(mode="before")
    @classmethod
    def _published(cls, values: Any) -> Any:
        """Fill in what the recipe publishes for the fields that are not given."""
        if not isinstance(values, dict):
            return values
        return {**RECIPE_DEFAULTS.get(str(values.get("name", "dacs")), {}), **values}

    @model_validator(mode="after")
    def _margins_leave_something(self) -> Self:
        for one, other in (("margin_top", "margin_bottom"), ("margin_left", "margin_right")):
            if (total := getattr(self, one) + getattr(self, other)) >= 1.0:
                raise ValueError(f"{one} + {other} is {total:g}, which leaves no pseudo-label; it must be below 1")
        return self

    @property
    def test_time(self) -> bool:
        """Whether the recipe is a test-time baseline: no source images, no MFM."""
        return self.name in ("bn_statistics", "tent", "cotta")

    def anchor_strength(self, *, source_free: bool) -> float:
        """`anchor_weight`, or what stands for none: `SOURCE_FREE_ANCHOR` without source images, 0 with them."""
        if self.test_time:
            return 0.0
        if self.anchor_weight is not None:
            return self.anchor_weight
        return SOURCE_FREE_ANCHOR if source_free else 0.0
