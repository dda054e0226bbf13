"""Settings of the added terms that mean nothing, or that nothing reads: refused, with the setting's name."""

from typing import Any

import pytest
from pydantic import ValidationError

from tests.sections import recipe_settings


@pytest.mark.parametrize(
    ("recipe", "values", "message"),
    [
        ("dacs", {"complementary": {"ratio": 1.0}}, r"complementary.ratio\n.*less than 1"),
        ("dacs", {"complementary": {"ratio": 0.0}}, r"complementary.ratio\n.*greater than 0"),
        ("dacs", {"blda": {"trim": 0.5}}, r"blda.trim\n.*less than 0.5"),
        ("dacs", {"blda": {"stride": 100}}, r"blda.stride\n.*less than or equal to 16"),
        ("dacs", {"translation": {"enabled": True, "weight": 0, "alignment_weight": 0}}, "both are 0; set one of them"),
        ("dacs", {"translation": {"enabled": True, "options": {"a": 1}}}, "'style' reads none, only a plug-in does"),
        ("mfm_da", {"translation": {"enabled": False}}, "mfm_da adapts by translation alone; set it to true"),
        ("mfm_da", {"translation": {"weight": 0, "alignment_weight": 0}}, "both are 0; set one of them"),
    ],
)
def test_a_value_that_means_nothing_is_refused(recipe: str, values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        recipe_settings(recipe, **values)


def test_values_at_the_ends_are_taken() -> None:
    advanced = recipe_settings(
        complementary={"ratio": 0.01}, blda={"trim": 0.0, "stride": 16}, translation={"enabled": True, "weight": 0}
    ).advanced
    assert (advanced.complementary.ratio, advanced.blda.stride, advanced.translation.weight) == (0.01, 16, 0.0)
