"""The configuration that `mfmd init` writes: the settings people change, each with a comment; it fits on one screen."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from configs.settings import Settings

HEADER = """\
# mfmd's settings. All of them: `mfmd config schema --markdown`. Paths are relative to this file.
# Next: `mfmd doctor`, then `mfmd pretrain` (or `mfmd import PATH`), then `mfmd run`.
"""
REASONS: dict[tuple[str, ...], str] = {
    ("state",): "buffer, checkpoints and rounds: the disk needs room for them",
    ("classes",): "cityscapes, camvid, demo, or a list of {name, color: [r, g, b]}",
    ("watch", "folder"): "where images arrive",
    ("watch", "after_commit"): "or delete, or move with done_folder: what happens to a stored image",
    ("source", "images"): "labelled images; without `source` rounds learn from new images alone",
    ("source", "labels"): "PNGs of class indices with the same names",
    ("buffer", "height"): "images are scaled to fit; a larger frame shows more and costs more (pixels)",
    ("buffer", "width"): "the camera's aspect wastes least (pixels)",
    ("buffer", "capacity_frames"): "how much of the past rounds learn from: 1.5 MiB a frame at this size",
    ("network", "encoder"): "what `mfmd pretrain` trains: mit_tiny on small CPUs, up to mit_b5 on a large GPU",
    ("recipe", "name"): "self-training: dacs is quickest; daformer and mic cost more and find rare classes",
    ("round", "steps"): "ends a round; more steps adapt further",
    ("round", "max_seconds"): "ends it too, whichever comes first",
    ("round", "batch_size"): "less when memory runs out",
    ("schedule", "new_frames"): "a round starts after this many new images",
    ("gate", "source_drop"): "a candidate that loses more on labelled source never serves (mIoU, 0-1)",
    ("serving", "host"): "0.0.0.0 for other machines; needs token_file",
    ("serving", "port"): "answers images: POST /v1/segment",
    ("serving", "device"): "cpu leaves a GPU to the rounds",
    ("control", "port"): "page, metrics and API of the daemon",
}
"""Why anybody would change it, for each setting in the file."""
PLACEHOLDERS: dict[tuple[str, ...], str] = {
    ("source", "images"): "source/images",
    ("source", "labels"): "source/labels",
}
"""What stands in the commented-out `source` section, whose paths have no default."""


def render(values: Mapping[tuple[str, ...], Any]) -> str:
    """Return the file's text. `values` maps setting paths, such as `("watch", "folder")`, to the user's choices.

    All other settings show their defaults. `source` is commented out unless `values` names it.
    """
    return HEADER + "".join(f"{line}\n" for line in _lines(values))


def _lines(values: Mapping[tuple[str, ...], Any]) -> Iterator[str]:
    section = ""
    for path, reason in REASONS.items():
        mark = "#" if path in PLACEHOLDERS and path not in values else ""
        if path[:-1] and path[0] != section:
            section = path[0]
            yield f"{mark}{section}:"
        value = values[path] if path in values else PLACEHOLDERS.get(path) or _default(path)
        setting = f"{mark}{'  ' * (len(path) - 1)}{path[-1]}: {_scalar(value)}"
        yield f"{setting:<27} # {reason}"


def _default(path: tuple[str, ...]) -> Any:
    value: Any = Settings.model_validate({"classes": "demo", "watch": {"folder": "drop"}})  # what has no default
    for key in path:
        value = getattr(value, key)
    return value


def _scalar(value: Any) -> str:
    """Return `value` as one line of YAML, quoted where YAML would read it differently (`no` is a boolean)."""
    plain = str(value) if isinstance(value, Path) else value
    return yaml.safe_dump(plain, default_flow_style=True, width=10_000, allow_unicode=True).splitlines()[0]
