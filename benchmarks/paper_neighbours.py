"""The rows of the neighbours of MFM: VFM-UDA and VFM-UDA++ on DINOv2, MFM-DA on ten photographs of retinas."""

from typing import Any

from paper_figures import Row, of

VFM_UDA, VFM_UDA_PP = "2406.09896", "2503.10685"
TWO_BY_FOUR = {"round.batch_size": 2, "round.advanced.gradient_accumulation": 4}
"""The published four GPUs with two images each, one after the other on one GPU."""
LIGHT: dict[str, Any] = {
    **TWO_BY_FOUR,
    "network.name": "light",
    "round.optim.advanced.layer_decay": 1.0,
    "recipe.advanced.masked_tokens": True,
    "recipe.advanced.source_jitter": 32 / 255,
    "recipe.advanced.foundation.enabled": False,
}
"""VFM-UDA: its light head on the ViT alone; tokens are masked; no feature distance. Its weak jitter of source images
has a strength for each change (brightness 32/255, contrast and saturation 0.5, hue 0.05), mfmd one for all."""
LARGE_RATE = {"pretrain.optim.learning_rate": 2.828e-6, "round.optim.learning_rate": 2.828e-6}
"""VFM-UDA++ Large: 1e-5 x sqrt(8 images), a tenth of it for the ViT."""
PRESET = "gta2cityscapes_vfmuda"
WEAK = "the weak jitter is that of brightness and of source images alone, and the teacher sees no mirrored image"
NORMS = "BatchNorm sees two images at a time, not the eight of four GPUs"

NEIGHBOURS = {
    "gta-vfmuda-base": Row(
        "gta", "cityscapes", "VFM-UDA", "light head, DINOv2 ViT-B", PRESET,
        of("19", ("plain", 77.1, VFM_UDA), ("mfm", None, "")),
        {**LIGHT, "network.encoder": "dinov2_base"}, WEAK,
    ),
    "gta-vfmuda-large": Row(
        "gta", "cityscapes", "VFM-UDA", "light head, DINOv2 ViT-L", PRESET,
        of("19", ("plain", 78.4, VFM_UDA), ("mfm", None, "")),
        {**LIGHT, "network.encoder": "dinov2_large"}, WEAK,
    ),
    "gta-vfmuda++-base": Row(
        "gta", "cityscapes", "VFM-UDA++", "pyramid, DINOv2 ViT-B with adapter", PRESET,
        of("19", ("plain", None, ""), ("mfm", None, "")), TWO_BY_FOUR, NORMS,
    ),
    "gta-vfmuda++-large": Row(
        "gta", "cityscapes", "VFM-UDA++", "pyramid, DINOv2 ViT-L with adapter", PRESET,
        of("19", ("plain", 79.8, VFM_UDA_PP), ("mfm", None, "")),
        {**TWO_BY_FOUR, **LARGE_RATE, "network.encoder": "dinov2_adapter_large"}, NORMS,
    ),
    "synthia-vfmuda++-base": Row(
        "synthia", "cityscapes", "VFM-UDA++", "pyramid, DINOv2 ViT-B with adapter", PRESET,
        of("16", ("plain", 69.7, VFM_UDA_PP), ("mfm", None, "")) + of("13", ("plain", None, "")), TWO_BY_FOUR,
        f"the read-me does not say over which classes 69.7 is the mean: the row takes SYNTHIA's 16; {NORMS}",
    ),
    "refuge-mfmda": Row(
        "refuge", "refuge", "MFM-DA", "U-Net, frozen DINOv2 ViT-L with tokens", "fundus_fewshot",
        of("disc, cup", ("plain", None, ""), ("mfm", None, "")),
        {
            **{f"buffer.{side}": 224 for side in ("height", "width")},
            **{f"round.crop_{side}": 224 for side in ("height", "width")},
            "watch.advanced.include": ["V000[1-9].jpg", "V0010.jpg"],
            "recipe.advanced.class_bce.nested": [["disc", "cup"]],
            "gate.advanced.class_weights": {},
        },
        "figures of MFM-DA (2503.00802) were not found; its target is REFUGE's test set, its translation a diffusion "
        "model, its frozen ViT RETFound, its optimizer SGD; which ten photographs it takes is not known",
        steps=15_000,
        tiny={"recipe.advanced.target_images": 1, "network.advanced.tokens.head_width": 16},
    ),
}  # fmt: skip
"""By key. MFM-DA's 100 epochs of 400 images in batches of 8, with an optimizer step for each of three losses, are
15,000 steps."""
