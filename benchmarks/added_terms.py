"""The terms that any recipe with a teacher can add, as `adaptation.py` and `step_time.py` switch them on.

Not `foundation`: it needs the weights of a DINOv2 (`term_cases.py` draws one).
"""

from dataclasses import dataclass
from itertools import combinations
from typing import Any


@dataclass(frozen=True, slots=True)
class AddedTerm:
    """One term, or several together."""

    title: str
    """As tables name it."""
    advanced: dict[str, Any]
    """What stands in `recipe.advanced`."""


TERMS = {
    "complementary": AddedTerm("complementary masks", {"complementary": {"enabled": True}}),
    "blda": AddedTerm("BLDA", {"blda": {"enabled": True}}),
    "dida": AddedTerm("DiDA", {"dida": {"enabled": True}}),
    "class_confidence": AddedTerm("class confidence", {"class_confidence": {"enabled": True}}),
}
PUBLISHED = ("complementary", "blda", "dida")
"""Terms with figures in a paper of their own, over the same recipes as MFM."""
PAIRS = {
    f"{one}_{other}": AddedTerm(
        f"{TERMS[one].title} + {TERMS[other].title}", {**TERMS[one].advanced, **TERMS[other].advanced}
    )
    for one, other in combinations(PUBLISHED, 2)
}
"""Two published terms at once."""
