"""Compare the classes of a model with those of the configuration: a class at another index mislabels every mask."""

import json
import re
from collections.abc import Callable, Sequence
from typing import Any

from adapters.errors import NetworkMismatch, UnsupportedModel
from configs.class_list import plain_name

_GENERIC = re.compile(r"(label|class)?\d+", re.ASCII)
"""Names that a library gives when nobody did: LABEL_0, class 0, 0; as `plain_name` returns them."""
_MOST = 40
"""Longest list of classes in a message."""
_REMEDY = (
    "give `classes` in mfmd.yaml the model's names in the model's order (`mfmd init --from-model MODEL` writes them)"
)


def check_classes(
    hf_config: dict[str, Any], ours: Sequence[str], *, by_position: bool, note: Callable[[str], None]
) -> None:
    """Refuse a model whose class names differ from `ours` at any index.

    Case, spaces, hyphens and underscores make no difference. `by_position` accepts other names, unless one of them is
    the name of another class of ours. What was assumed goes to `note`. Raises UnsupportedModel when config.json does
    not number its classes 0, 1, 2, ..., NetworkMismatch when they are not ours.
    """
    theirs = names_of(hf_config)
    if theirs is None:
        note(f"config.json does not name the classes; they are taken in the order of `classes`: {_listed(ours)}")
        return
    if len(theirs) != len(ours):
        raise NetworkMismatch(
            f"config.json: the model has {len(theirs)} classes, the configuration lists {len(ours)}; {_REMEDY}: "
            f"{_listed(theirs)}; now `classes` has {_listed(ours)}"
        )
    plain, wanted = [plain_name(name) for name in theirs], [plain_name(name) for name in ours]
    differing = [index for index in range(len(ours)) if plain[index] != wanted[index]]
    if not differing:
        return
    moved = [index for index in differing if plain[index] in wanted]
    if moved or not by_position:
        raise NetworkMismatch(_message(theirs, ours, differing, bool(moved)))
    renamed = ", ".join(f"{index} {theirs[index]!r} as {ours[index]!r}" for index in differing)
    note(f"classes are taken by position: {renamed}")


def _message(theirs: Sequence[str], ours: Sequence[str], differing: Sequence[int], moved: bool) -> str:
    table = "; ".join(f"{index}: {theirs[index]!r} | {ours[index]!r}" for index in differing[:_MOST])
    more = f"; and {len(differing) - _MOST} more" if len(differing) > _MOST else ""
    remedy = _REMEDY
    if not moved:
        remedy += ", or, if each is only another word for the same class, import with --classes-by-position"
    what = "stand in another order" if moved else "have other names"
    return (
        f"config.json: classes of the model {what} than in `classes`; {remedy}. Index: model | `classes`: {table}{more}"
    )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:_MOST])) + (f" and {len(names) - _MOST} more" if len(names) > _MOST else "")


def names_of(hf_config: dict[str, Any]) -> list[str] | None:
    """Return the class names of a config.json by index; None when it gives none, or only numbers (LABEL_0).

    Raises UnsupportedModel when it does not number its classes 0, 1, 2, ..., when a name is no text, or when num_labels
    is another number.
    """
    labels = hf_config.get("id2label")
    if isinstance(labels, list):
        labels = dict(enumerate(labels))
    if labels is None or labels == {}:
        return None
    if not isinstance(labels, dict) or not all(str(key).isdecimal() for key in labels):
        raise UnsupportedModel("config.json: id2label must map class numbers to names")
    by_index = {int(key): labels[key] for key in labels}
    gaps = sorted(set(range(len(labels))) - by_index.keys())
    if gaps:
        raise UnsupportedModel(
            f"config.json: id2label has {len(labels)} entries, but none for class {gaps[0]}; number them 0, 1, 2, ..."
        )
    for index, name in sorted(by_index.items()):
        if isinstance(name, bool) or not isinstance(name, (str, int)):
            raise UnsupportedModel(
                f"config.json: id2label gives class {index} the name {json.dumps(name)}; text is needed"
            )
    names = [str(by_index[index]) for index in range(len(labels))]
    if all(_GENERIC.fullmatch(plain_name(name)) for name in names):
        return None
    count = hf_config.get("num_labels", len(labels))
    if count != len(labels):
        raise UnsupportedModel(
            f"config.json: num_labels is {count!r}, id2label names {len(labels)} classes; correct one"
        )
    return names
