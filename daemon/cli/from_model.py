"""`mfmd init --from-model`: the configuration that a model's own files ask for."""

import re
from typing import TYPE_CHECKING, Any, NamedTuple

from daemon.cli.options import user_path

if TYPE_CHECKING:
    from adapters.checkpoints.hub import Located
    from adapters.checkpoints.model_facts import ModelFacts

LEAST_CLASSES, MOST_CLASSES = 2, 255
"""What `classes` takes."""
_WIDTH = 110
"""Columns of a line of class names."""


class Model(NamedTuple):
    """A model to take a configuration from."""

    place: "Located"
    """Where it lies on this machine."""
    facts: "ModelFacts"
    """What its files say."""


def read_model(source: str, *, pickles: bool) -> Model:
    """Fetch a model if `source` is a hub id, and read what its files say. Raises UnsupportedModel."""
    from adapters.checkpoints.hub import locate
    from adapters.checkpoints.model_facts import facts_of

    located = locate(str(user_path(source)) if source.startswith("~") else source, pickles=pickles)
    return Model(located, facts_of(located.path))


def fitted(text: str, facts: "ModelFacts", *, keep_classes: bool) -> str:
    """Return the text of a configuration with the classes and the frame size of a model.

    `keep_classes` leaves the classes alone. Raises UnsupportedModel when the model names none and they are not kept.
    """
    if not keep_classes:
        text = _with_classes(text, facts)
    for key, value in facts.buffer.items():
        text = _with_buffer(text, key, value)
    if {"height", "width"} <= facts.buffer.keys():
        mebibytes = 3 * facts.buffer["height"] * facts.buffer["width"] / 2**20
        text = text.replace("1.5 MiB a frame", f"{mebibytes:.2g} MiB a frame", 1)
    return re.sub(
        "^# Next: .*$", "# The model is imported already. Next: `mfmd run`.", text, count=1, flags=re.MULTILINE
    )


def _with_classes(text: str, facts: "ModelFacts") -> str:
    from adapters.errors import UnsupportedModel
    from configs.class_list import classes_named

    if facts.names is None:
        raise UnsupportedModel(
            "config.json does not name the classes of the model; give their names in its order: --classes road,car"
        )
    names = [" ".join(name.split()) for name in facts.names]
    if not LEAST_CLASSES <= len(names) <= MOST_CLASSES:
        alone = "; a model of one class answers by a threshold, which mfmd does not read" if len(names) == 1 else ""
        raise UnsupportedModel(
            f"config.json: the model has {len(names)} classes; at least {LEAST_CLASSES} and at most {MOST_CLASSES} can "
            f"be told apart in a mask{alone}"
        )
    if odd := [name for name in names if not name or names.count(name) > 1]:
        raise UnsupportedModel(
            f"config.json: id2label gives {names.count(odd[0])} classes the name {odd[0]!r}; give names that differ, "
            "in its order: --classes road,car"
        )
    value = classes_named(names)
    if isinstance(value, str):
        listed = f"{f'classes: {value}':<27} # the model's own"
    elif isinstance(value[0], str):
        listed = f"# the model's own, in its order\n{_flow({'classes': value}, None, _WIDTH)}"
    else:
        listed = "\n".join(["classes: # the model's own, in its order", *(f"  - {_flow(entry)}" for entry in value)])
    return re.sub(r"^classes: .*$", lambda _: listed, text, count=1, flags=re.MULTILINE)


def _with_buffer(text: str, key: str, value: Any) -> str:
    """Return the text with one value of `buffer`, in place of the old one or as a new line below the others."""
    shown = _flow(value) if isinstance(value, dict) else value
    line = f"{f'  {key}: {shown}':<27} # as the model's image processor makes images"
    section = re.search(r"^buffer:\n(?:  .*\n)*", text, flags=re.MULTILINE)
    if section is None:
        return f"{text}buffer:\n{line}\n"
    old = section[0]
    new, found = re.subn(rf"^  {key}: .*$", lambda _: line, old, count=1, flags=re.MULTILINE)
    return text.replace(old, new if found else f"{old}{line}\n", 1)


def _flow(value: object, style: bool | None = True, width: int = 10_000) -> str:
    """Return YAML in flow style; with style None a mapping stands in block style and what it holds in flow style."""
    import yaml

    text: str = yaml.safe_dump(value, sort_keys=False, allow_unicode=True, default_flow_style=style, width=width)
    return text.strip()
