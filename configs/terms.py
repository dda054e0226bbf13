"""Settings of the terms that any recipe with a teacher can add, below `recipe.advanced`; each is off at weight 0."""

from configs.section import Fraction, NotNegative, Section


class ComplementarySettings(Section):
    """Two complementary masked views of the target image (MaskTwins; Wang et al., ICML 2025, arXiv 2507.12008)."""

    weight: NotNegative = 0.0
    """Weight of the term: the cross-entropy of both views against the same pseudo-label, half each. 0 is off; 1 is
    published."""
    distance_weight: NotNegative = 0.01
    """Weight of the mean squared difference of the two views' logits, inside the term."""
    block: Fraction = 0.0625
    """Side of a block as a share of the shorter crop side: 64 of 1024."""
    ratio: Fraction = 0.5
    """Probability that a block is masked in the first view; the second view masks the other blocks. 0.1 / 0.3 / 0.5:
    72.0 / 75.4 / 76.7 mIoU in the paper (SYNTHIA to Cityscapes)."""
    by_region: bool = False
    """Draw the blocks separately for the things (`recipe.thing_classes`) and for the stuff of the pseudo-label: a
    reading of OMUDA's context level."""
