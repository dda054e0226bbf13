"""The terms that `recipe.advanced` adds, as settings that switch each of them on."""

from pathlib import Path
from typing import Any

from adapters.networks.encoders.dinov2 import build_dinov2

TERMS: dict[str, dict[str, Any]] = {
    "class_bce": {"class_bce": {"enabled": True}},
    "translation": {"translation": {"enabled": True}},
    "complementary": {"complementary": {"enabled": True}},
    "blda": {"blda": {"enabled": True, "class_share": 0.0, "warmup": 5}},
    "dida": {"dida": {"enabled": True}},
    "class_confidence": {"class_confidence": {"enabled": True, "momentum": 0.5}},
    "foundation": {"foundation": {"enabled": True, "tokens": 3}},
}
"""What stands in `recipe.advanced`, by term."""
TOGETHER = {name: settings for term in TERMS.values() for name, settings in term.items()}
"""All of them."""


def with_encoder(terms: dict[str, Any], folder: Path) -> dict[str, Any]:
    """`terms`, with a tiny DINOv2 of random weights, saved in `folder`, where one needs a frozen encoder."""
    if "foundation" not in terms:
        return terms
    build_dinov2("dinov2_tiny", None, pyramid=False).model.save_pretrained(folder / "dinov2")
    return {**terms, "foundation": {**terms["foundation"], "directory": str(folder / "dinov2")}}


def named(recipe: str, thing: str = "car") -> dict[str, Any]:
    """Settings of `recipe`: its name, a thing for omuda's masks by region, few images and joint steps for mfm_da."""
    if recipe == "mfm_da":
        return {"name": recipe, "advanced": {"separate_steps": False, "target_images": 1}}
    return {"name": recipe, "thing_classes": [thing]} if recipe == "omuda" else {"name": recipe}
