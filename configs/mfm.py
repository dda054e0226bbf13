"""Settings of Masked Feature Modeling."""

from typing import Annotated, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from configs.section import Fraction, NotNegative, Positive, PositiveInt, Section


class MfmAblation(Section):
    """Size of the Rebuilder, and the switches of the paper's ablations; the defaults are the paper's best.

    Figures are mIoU of the paper's ablations (DACS, DeepLabV2-R101, GTA to Cityscapes); the defaults score 55.9 there.
    """

    grid: PositiveInt = 16
    """Cells on the shorter side of the mask grid, at most as many as the deepest map has; the cells are square. 8 / 16
    / 32: 55.6 / 55.9 / 54.1."""
    dim: PositiveInt = 512
    """Token width of the Rebuilder (channels, divisible by 4 and by `heads`). 128 / 256 / 512 / 768: 54.7 / 55.1 / 55.9
    / 53.6."""
    blocks: PositiveInt = 2
    """Transformer blocks of the Rebuilder. 1 / 2 / 4 / 8: 55.4 / 55.9 / 54.4 / 52.9."""
    heads: Annotated[PositiveInt, Field(validate_default=True)] = 16
    """Attention heads; `dim` is a multiple of them."""
    domain: Literal["target", "source", "both"] = "target"
    """Whose images the branch rebuilds: target 55.9, source (with true labels) 52.9, both 55.2. Without source images
    only target is possible."""
    reconstruction: Literal["classify", "teacher_feature", "student_feature", "pixels", "mask_only"] = "classify"
    """What the rebuilt cells must match: pixel classes through the decoder (55.9), the teacher's features (53.5), the
    student's own unmasked features (53.7) or the image's pixels (51.8). mask_only classifies without a Rebuilder and
    leaves the masked cells at zero (51.9)."""
    detach_encoder: bool = False
    """Keep the branch's gradient out of the encoder: it trains decoder and Rebuilder only (54.2)."""
    freeze_decoder: bool = False
    """Keep the branch's gradient out of the decoder: it trains encoder and Rebuilder only (54.9)."""
    interval: PositiveInt = 1
    """Run the branch at every n-th step only, n times as strong, so that its gradient is the same on average: for small
    machines (ours; as the lazy regularisation of Karras et al. 2020, arXiv 1912.04958). 1, every step, is the
    paper's."""

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
            raise ValueError(f"must divide mfm.ablation.dim, which is {dim}")
        return heads

    @property
    def classifies(self) -> bool:
        """Whether the decoder reads the branch's features."""
        return self.reconstruction in ("classify", "mask_only")


class MfmSettings(Section):
    """Masked Feature Modeling (Zhou et al., arXiv 2509.13801): the training-only branch."""

    enabled: bool = True
    """Run the branch. The test-time recipes (bn_statistics, tent, cotta) never do."""
    mask_ratio: Fraction = 0.4
    """Probability that a cell of the feature grid is masked (0-1). 0.2 / 0.4 / 0.6 / 0.8: 54.3 / 55.9 / 55.2 / 54.1
    mIoU in the paper. 0 trains on the plain target, without a Rebuilder: the control of the masking."""
    weight: NotNegative = 1.0
    """Factor lambda of the branch's loss. 0.1 / 0.5 / 1 / 2 / 10: 54.7 / 55.8 / 55.9 / 55.4 / 52.1 mIoU in the
    paper."""
    learning_rate: Positive = 2e-4
    """AdamW learning rate of the Rebuilder."""
    ablation: MfmAblation = MfmAblation()

    @model_validator(mode="after")
    def _trains_what_serves(self) -> Self:
        """Refuse switches that leave nothing to learn, rather than spend a pass a step on it."""
        switches = self.ablation
        if self.mask_ratio == 0.0 and not switches.classifies:
            raise ValueError(
                f"ablation.reconstruction: {switches.reconstruction} looks at masked cells, and mask_ratio 0 has none"
            )
        if switches.detach_encoder and (switches.freeze_decoder or not switches.classifies):
            raise ValueError(
                "ablation.detach_encoder: with freeze_decoder, or with a target that needs no decoder, the branch "
                "would train nothing that serves"
            )
        return self

    @property
    def rebuilds(self) -> bool:
        """Whether there is a Rebuilder with anything in it."""
        return self.mask_ratio > 0.0 and self.ablation.reconstruction != "mask_only"
