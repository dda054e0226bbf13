"""Settings of the terms that any recipe with a teacher can add, below `recipe.advanced`."""

from typing import Annotated, Final, Self

from pydantic import AfterValidator, Field, JsonValue, model_validator

from configs.plugins import TRANSLATIONS, checked_name
from configs.section import ConfigPath, Fraction, NotNegative, Positive, PositiveInt, ProperFraction, Section


class ComplementarySettings(Section):
    """Two complementary masked views of the target image (MaskTwins; Wang et al., ICML 2025, arXiv 2507.12008)."""

    enabled: bool = False
    """Add the term."""
    weight: Positive = 1.0
    """Weight of the term: the cross-entropy of both views against the same pseudo-label, half each."""
    distance_weight: NotNegative = 0.01
    """Weight of the mean squared difference of the two views' logits, inside the term."""
    block: Fraction = 0.0625
    """Side of a block as a share of the shorter crop side: 64 of 1024."""
    ratio: ProperFraction = 0.5
    """Probability that a block is masked in the first view; the second view masks the other blocks. 0.1 / 0.3 / 0.5:
    72.0 / 75.4 / 76.7 mIoU in the paper (SYNTHIA to Cityscapes)."""
    by_region: bool = False
    """Draw the blocks separately for the things (`recipe.thing_classes`) and for the stuff of the pseudo-label: a
    reading of OMUDA's context level."""


class BldaSettings(Section):
    """Class balance by the distributions of logits (BLDA; Li et al., ICML 2025, arXiv 2512.06886); needs source."""

    enabled: bool = False
    """Add the term."""
    strength: Positive = 0.1
    """Share tau of the alignment that is subtracted from the logits in the losses source and mix."""
    quantile_weight: NotNegative = 0.2
    """Weight of the head that learns each pixel's quantile in the distribution of its class; 0 leaves it out."""
    components: PositiveInt = 5
    """Normal distributions in the mixture of each class and logit."""
    iterations: PositiveInt = 3
    """Steps of expectation maximisation at each batch (a step has several with gradient accumulation)."""
    momentum: Fraction = 0.99
    """Share of a mixture that stays at each batch."""
    warmup: PositiveInt = 1500
    """Batches over which the momentum rises from 0."""
    class_share: Fraction = 500 / (2 * 512**2)
    """A class moves its mixtures when it has this share of the batch's pixels: 500 of two crops of 512x512."""
    trim: Annotated[float, Field(ge=0.0, lt=0.5)] = 0.01
    """Quantiles below this and above 1 minus this are treated as this: the tails of a mixture are poorly known."""
    stride: Annotated[int, Field(ge=1, le=16)] = 4
    """Rows and columns of the pixels that the mixtures are fitted to: every one in so many."""


class DidaSettings(Section):
    """Noisy images as domains between source and target (DiDA; Li et al., NeurIPS 2025, arXiv 2412.10339).

    A second encoder doubles what trains; it never serves.
    """

    enabled: bool = False
    """Add the term."""
    weight: Positive = 0.5
    """Weight lambda_D of the cross-entropy on noisy source and target images."""
    noise_weight: NotNegative = 5.0
    """Weight lambda_R of the mean squared error of the predicted noise. The paper has 5 for DAFormer and 1 for
    DeepLabV2."""
    steps: PositiveInt = 100
    """Noise levels T, evenly likely; the last one is noise alone."""


class ClassConfidenceSettings(Section):
    """Weights of pseudo-labels by class: a reading of OMUDA's class level (Ou et al., arXiv 2512.12303).

    Only the abstract of OMUDA is public; the constants are ours.
    """

    enabled: bool = False
    """Add the term."""
    quantile: Fraction = 0.5
    """A pixel counts as confident from this quantile of its class's confidences on, if that is below
    `recipe.threshold`. So no class weighs less than 1 minus this."""
    momentum: Fraction = 0.99
    """Share of the confidences of the batches before that stays at each batch."""


class FoundationSettings(Section):
    """Features of masked target images near those of a frozen model: a reading of OMUDA's feature level.

    Ou et al., arXiv 2512.12303, of which only the abstract is public; the distance is that of VFM-UDA++ (Englert et
    al., arXiv 2503.10685).
    """

    enabled: bool = False
    """Add the term."""
    directory: ConfigPath | None = None
    """Local directory of a DINOv2, with registers or without, or a DINOv3 ViT, of any size: Hugging Face format
    (config.json and safetensors)."""
    weight: Positive = 0.1
    """Weight of the distance on target images."""
    source_weight: NotNegative = 0.1
    """Weight of the distance on whole source images (VFM-UDA++); 0 is off. It shares the pass that learns their labels
    (ours)."""
    tokens: PositiveInt = 29
    """Tokens on the shorter side of the image that the frozen model sees: 29 of 14 pixels, an image of 406."""
    block: Fraction = 0.0625
    """Side of a masked block as a share of the shorter crop side."""
    ratio: Fraction = 0.5
    """Probability that a block is masked (0-1); 0 shows the student the whole image, as VFM-UDA++ does."""

    @model_validator(mode="after")
    def _has_an_encoder(self) -> Self:
        if self.enabled and self.directory is None:
            raise ValueError("directory: name that of a model in Hugging Face format, or set enabled to false")
        return self


class ClassBceSettings(Section):
    """Binary cross-entropy of each class in the losses on true labels, for classes that overlap.

    Jiang et al. (MFM-DA, arXiv 2503.00802) train disc and cup so. How overlapping classes stand in a mask of one class
    a pixel is ours.
    """

    enabled: bool = False
    """Take the place of the cross-entropy in the losses source, mix and translated."""
    nested: tuple[tuple[str, str], ...] = ()
    """Pairs of an outer and an inner class, `[[disc, cup]]`: a pixel of the inner class is one of the outer too. In
    labels and masks it has the inner class."""

    @model_validator(mode="after")
    def _is_used(self) -> Self:
        if self.nested and not self.enabled:
            raise ValueError("nested: has no effect while enabled is false; set enabled to true, or remove nested")
        return self

    @model_validator(mode="after")
    def _has_no_circle(self) -> Self:
        around = self.around()
        if lost := sorted(name for name, outer in around.items() if name in outer):
            raise ValueError(f"nested: {lost[0]!r} is inside itself; remove one of its pairs")
        return self

    def around(self) -> dict[str, set[str]]:
        """Return the classes around each inner class, also those around these."""
        around: dict[str, set[str]] = {}
        for outer, inner in self.nested:
            around.setdefault(inner, set()).add(outer)
        for _ in around:  # long enough for the longest chain
            for outers in around.values():
                outers.update(*(around.get(name, ()) for name in tuple(outers)))
        return around


BUILT_IN_TRANSLATIONS: Final = ("style",)


def _is_translation(name: str) -> str:
    return checked_name(name, TRANSLATIONS, BUILT_IN_TRANSLATIONS)


class TranslationSettings(Section):
    """Source images in the appearance of the target, as in MFM-DA (Jiang et al., arXiv 2503.00802); needs source.

    Two losses: maps of an image and of its translation stay alike, and the translation is learnt with the image's
    labels.
    """

    enabled: bool = False
    """Add the losses."""
    translate: Annotated[str, AfterValidator(_is_translation)] = "style"
    """What translates: `style` swaps low frequencies and colour statistics with the target crop, as the gate does for
    its restyled source (the paper trains a diffusion model); or a plug-in of `mfmd.translations`."""
    alignment_weight: NotNegative = 1.0
    """Weight of the alignment: 1 - cosine of channels, over all positions of all maps."""
    weight: NotNegative = 1.0
    """Weight of the loss on the translation with the image's labels."""
    reach: Fraction = 0.05
    """style: half side of the swapped window of frequencies as a share of the shorter side; the middle one of FDA's
    (Yang and Soatto, CVPR 2020)."""
    max_gain: Positive = 4.0
    """style: largest factor by which the contrast of a colour channel is raised; ours."""
    options: dict[str, JsonValue] = Field(default_factory=dict)
    """What a plug-in reads as `inputs.recipe.advanced.translation.options`."""

    @model_validator(mode="after")
    def _has_an_effect(self) -> Self:
        if self.enabled and self.weight == self.alignment_weight == 0.0:
            raise ValueError("weight, alignment_weight: both are 0; set one of them, or set enabled to false")
        if self.options and self.translate in BUILT_IN_TRANSLATIONS:
            raise ValueError(f"options: {self.translate!r} reads none, only a plug-in does; remove them")
        return self


class OmudaComplementary(ComplementarySettings):
    """Complementary masks as recipe omuda has them: on, and by region."""

    enabled: bool = True
    by_region: bool = True


class OmudaClassConfidence(ClassConfidenceSettings):
    """Class confidence as recipe omuda has it: on."""

    enabled: bool = True


class MfmDaClassBce(ClassBceSettings):
    """Binary cross-entropy as recipe mfm_da has it: on."""

    enabled: bool = True


class MfmDaTranslation(TranslationSettings):
    """Translation as recipe mfm_da has it: on."""

    enabled: bool = True

    @model_validator(mode="after")
    def _is_on(self) -> Self:
        if not self.enabled:
            raise ValueError("enabled: mfm_da adapts by translation alone; set it to true, or take recipe.name dacs")
        return self
