"""Which settings a reload changes in a running process; all others need a restart."""

from collections.abc import Iterator

from pydantic import BaseModel

from configs.settings import Settings

LIVE = frozenset({
    "buffer.reserve_bytes", "canary", "conditions", "drift", "gate", "log", "mfm", "network", "notify", "pretrain",
    "probation", "recall", "recipe", "registry", "round", "schedule", "source", "watch.stability_seconds",
    "watch.advanced.group_frames", "watch.advanced.group_seconds", "watch.advanced.rescan_seconds",
})  # fmt: skip
"""Settings, and whole sections, that are read again at each use. A round that runs keeps those of its start."""


def is_live(name: str) -> bool:
    """Whether a reload changes the setting with this dotted name."""
    return name in LIVE or name.partition(".")[0] in LIVE


def changed(before: BaseModel, after: BaseModel, section: str = "") -> Iterator[str]:
    """Dotted names of the settings that differ; a section that was added, removed or replaced is one name."""
    for field in type(before).model_fields:
        name, old, new = f"{section}{field}", getattr(before, field), getattr(after, field)
        if isinstance(old, BaseModel) and type(old) is type(new):
            yield from changed(old, new, f"{name}.")
        elif old != new:
            yield name


def with_live(now: Settings, wanted: Settings) -> Settings:
    """`now` with the live settings of `wanted`. Raises ValidationError when the two do not go together."""
    return Settings.model_validate(dict(_taken(now, wanted, "")))


def _taken(now: BaseModel, wanted: BaseModel, section: str) -> BaseModel:
    update = {}
    for field in type(now).model_fields:
        name, old, new = f"{section}{field}", getattr(now, field), getattr(wanted, field)
        if is_live(name):
            update[field] = new
        elif isinstance(old, BaseModel) and type(old) is type(new):
            update[field] = _taken(old, new, f"{name}.")
    return now.model_copy(update=update)
