"""The terms that `recipe.advanced` adds, as settings that switch each of them on."""

from typing import Any

TERMS: dict[str, dict[str, Any]] = {
    "complementary": {"complementary": {"weight": 1.0}},
}
"""What stands in `recipe.advanced`, by term."""
