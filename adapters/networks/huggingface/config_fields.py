"""Fields of a config.json that cannot be meant: transformers builds a model of most of them all the same."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from adapters.errors import UnsupportedModel

MOST = 65_536
"""No size, count or factor of a model is larger."""
MOST_EPSILON = 0.1
"""What keeps a division from zero is small, or nothing is left of the values."""
UNREAD = ("auxiliary", "ignore_index", "indices", "in_index", "label2id")
"""Parts of the names of fields that do not matter here, or count from the end too."""


def check_fields(values: Mapping[str, Any], place: str = "") -> None:
    """Raise UnsupportedModel, naming the field, for a number that no model has, and for text in place of true or false.

    Only fields that transformers knows are looked at.
    """
    usual = _usual(values)
    for key, value in values.items():
        numbers, default = list(_numbers(value)), list(_numbers(usual.get(key)))
        if isinstance(value, dict) and "model_type" in value:
            check_fields(value, f"{place}{key}.")
        if isinstance(usual.get(key), bool) and isinstance(value, str):
            raise UnsupportedModel(f"config.json: {place}{key} is {value!r}; true or false is needed, without quotes")
        if not default or isinstance(default[0], bool) or any(part in key for part in UNREAD):
            continue
        low, high, exact = _range_of(key, default)
        if (value is None and exact) or not all(low <= number <= high for number in numbers):
            raise UnsupportedModel(
                f"config.json: {place}{key} is {value}; numbers from {low:g} to {high:g} can be meant"
            )


def odd_fields(values: Mapping[str, Any], message: str, place: str = "") -> Iterator[str]:
    """Yield the fields that can cause `message`: unlike transformers' default, empty, or of another length."""
    usual = _usual(values)
    lists = {
        key: value for key, value in values.items() if isinstance(value, list) and isinstance(usual.get(key), list)
    }
    for key, value in lists.items():
        peers = [len(lists[other]) for other in lists if len(usual[other]) == len(usual[key])]
        if (not value and usual[key]) or len(set(peers)) > 1 or (len(peers) == 1 and len(value) != len(usual[key])):
            yield f"{place}{key} (length {len(value)})"
    for key, value in values.items():
        alone = isinstance(usual.get(key), (int, float)) and not isinstance(usual[key], bool)
        if (isinstance(value, str) and repr(value) in message) or (alone and not _is_number_or_pair(value)):
            yield f"{place}{key} ({value!r})"
        elif isinstance(value, dict) and "model_type" in value:
            yield from odd_fields(value, message, f"{place}{key}.")


def _usual(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the defaults of transformers for a config of this kind; empty for one that it does not know."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    kind = values.get("model_type")
    return CONFIG_MAPPING[kind]().to_dict() if isinstance(kind, str) and kind in CONFIG_MAPPING else {}


def _numbers(value: Any) -> Iterator[float]:
    if isinstance(value, (int, float)):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _numbers(item)


def _is_number_or_pair(value: Any) -> bool:
    """Return whether `value` can stand for one number: itself, or a list of two (height and width)."""
    return isinstance(value, (int, float)) or (isinstance(value, list) and len(list(_numbers(value))) == 2)


def _range_of(key: str, default: list[float]) -> tuple[float, float, bool]:
    """Return the lowest and highest number that a field can have, and whether it must have one."""
    if "dropout" in key or key.startswith("drop_"):
        return 0, math.nextafter(1, 0), True
    if key.endswith("_eps"):
        return 0, MOST_EPSILON, True
    counts = all(isinstance(number, int) and number >= 1 for number in default)
    return (1 if counts else 0) if min(default) >= 0 else -MOST, MOST, False
