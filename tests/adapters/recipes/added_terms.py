"""The terms that `recipe.advanced` adds, as settings that switch each of them on."""

from typing import Any

TERMS: dict[str, dict[str, Any]] = {
    "complementary": {"complementary": {"enabled": True}},
    "blda": {"blda": {"enabled": True, "class_share": 0.0, "warmup": 5}},
    "dida": {"dida": {"enabled": True}},
    "class_confidence": {"class_confidence": {"enabled": True, "momentum": 0.5}},
}
"""What stands in `recipe.advanced`, by term."""
TOGETHER = {name: settings for term in TERMS.values() for name, settings in term.items()}
"""All of them."""
