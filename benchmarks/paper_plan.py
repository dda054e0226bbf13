"""The plan of `paper.py`: one configuration of the product for each row, arm and seed."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from adaptation_arms import override
from paper_data import DATA_SETS, Found, find_train, find_validation, target_images
from paper_figures import ARMS, Row
from paper_rows import PRESETS, ROWS

from configs.network import NetworkSettings
from configs.settings import Settings
from configs.watch import WatchSettings
from daemon.watch.scan import FolderScan
from storage.durable.digest import digest_of

ALWAYS: dict[str, Any] = {
    "gate.policy": "always",
    "gate.forgetting": "allow",
    "schedule.enabled": False,
    "schedule.min_frames": 1,
    "serving.enabled": False,
    "observe.enabled": False,
    "conditions.advanced.enabled": False,
    "buffer.holdout_fraction": 0.0,
    "round.max_seconds": 30 * 86_400.0,
    "round.advanced.average_ratios": [],
    "round.advanced.leave_out": [],
    "round.advanced.most_source_share": 1.0,
    "round.advanced.restart_after_rejections": 0,
    "watch.stability_seconds": 0.0,
    "watch.advanced.source_label": "none",
    "watch.advanced.include": ["*.png", "*.jpg", "*.jpeg"],
}
"""As published: every target image is trained on, all steps are done, and no gate decides."""
TINY: dict[str, Any] = {
    "buffer.height": 64,
    "buffer.width": 128,
    "buffer.capacity_frames": 16,
    "buffer.reserve_bytes": 0,
    "network.channels": 16,
    "pretrain.batch_size": 1,
    "pretrain.crop_height": 64,
    "pretrain.crop_width": 64,
    "mfm.ablation.grid": 2,
    "mfm.ablation.dim": 32,
    "mfm.ablation.heads": 4,
    "round.batch_size": 1,
    "round.crop_height": 64,
    "round.crop_width": 64,
    "recipe.advanced.foundation.tokens": 4,
    "round.device": "cpu",
    "round.advanced.threads": 1,
    "serving.device": "cpu",
}
"""For tests: sizes of a row beside its tiny encoder."""
START = {"classes", "watch", "source", "buffer", "network", "pretrain"}
"""Sections that decide about a start: the imported source, the target frames and the first version."""
WEIGHTS = re.compile(r"(dinov\d|[a-z]+)(?:_adapter|_tokens)?_?(\w+)")
"""Family of an encoder and its size, as names of weights have them."""
FAMILY = re.compile(r"([a-z]+|dinov\d(?:_adapter|_tokens)?)_?[a-z]*\d*$")
"""An encoder's name without its size."""
LOCAL = {"state", "serving", "masks", "publish", "notify", "control", "log"}
"""Sections that change no result."""


@dataclass(frozen=True, slots=True)
class Lengths:
    """How long runs are."""

    steps: int | None = None
    """Steps of self-training; None: as many as published."""
    source_steps: int = 1
    """Steps of source training before it: 1 keeps the ImageNet weights, because the rate begins at zero."""
    tiny: bool = False
    """Use tiny networks, frames and crops, to try everything but the figures."""


@dataclass
class Places:
    """The folders of a run, and what lies in them; each data set is looked through once."""

    data: Path
    """Holds one folder for each data set."""
    weights: Path
    """Holds one Hugging Face directory for each encoder."""
    work: Path
    """States, links and results."""
    _found: dict[tuple[str, str], Found] = field(default_factory=dict)

    def train(self, name: str) -> Found:
        """Return the labelled training split of a data set. Raises SourceRefused."""
        if ("train", name) not in self._found:
            self._found["train", name] = find_train(self.data, name)
        return self._found["train", name]

    def validation(self, name: str) -> Found:
        """Return the split of a data set that is scored. Raises SourceRefused."""
        if ("val", name) not in self._found:
            self._found["val", name] = find_validation(self.data, name, self.work / "links")
        return self._found["val", name]


@dataclass(frozen=True)
class Job:
    """One run: a row, an arm, a seed."""

    places: Places
    key: str
    """Key of ROWS."""
    arm: str
    """Key of ARMS."""
    seed: int
    lengths: Lengths

    @property
    def row(self) -> Row:
        """The row."""
        return ROWS[self.key]

    @property
    def title(self) -> str:
        """What the run is called in messages."""
        return f"{self.key} {self.arm} {self.seed}"

    @property
    def steps(self) -> int:
        """Steps of self-training."""
        return self.row.steps if self.lengths.steps is None else self.lengths.steps

    @property
    def weights(self) -> Path:
        """Directory of the encoder's weights, named as on the hub: mit_b5 -> mit-b5, resnet101 -> resnet-101.

        Those of an adapter or of tokens are the plain ViT's: dinov2_adapter_base -> dinov2-base.
        """
        return self.places.weights / WEIGHTS.sub(r"\1-\2", self._encoder)

    @property
    def foundation(self) -> Path | None:
        """Directory of the frozen model that features are compared with; None without such a term."""
        given = _foundation_of(self.values({}))
        return Path(given["directory"]) if given.get("enabled") else None

    @property
    def _encoder(self) -> str:
        given: str = self.row.settings.get("network.encoder") or _preset(self.row)["network"]["encoder"]
        return FAMILY.sub(r"\1_tiny", given) if self.lengths.tiny else given

    def values(self, source: Mapping[str, Any]) -> dict[str, Any]:
        """Return the configuration as it is written to YAML, all but `state`."""
        values, row, lengths = _preset(self.row), self.row, self.lengths
        folder, ignore = target_images(self.places.data, row.target)
        values |= {
            "classes": DATA_SETS[row.target].classes,
            "watch": {"folder": str(folder), "ignore": list(ignore)},
            "source": dict(source),
        }
        given = {
            "network.encoder": self._encoder,
            "network.pretrained": str(self.weights),
            "pretrain.steps": lengths.source_steps,
            "round.steps": self.steps,
            "round.advanced.seed": self.seed,
        }
        tiny = {**TINY, **row.tiny} if lengths.tiny else {}
        override(values, ALWAYS, row.settings, ARMS[self.arm][1], tiny, given)
        if (foundation := _foundation_of(values)).get("enabled"):
            name = "dinov2-tiny" if lengths.tiny else Path(foundation["directory"]).name
            foundation["directory"] = str(self.places.weights / name)
        return values

    @cached_property
    def settings(self) -> Settings:
        """The configuration, with the state directory of its start. Raises SourceRefused."""
        values = self.values(self.places.train(self.row.source).settings())
        start = Settings.model_validate(values).model_dump(mode="json", include=START)
        state = self.places.work / "starts" / digest_of(json.dumps(start, sort_keys=True).encode())[:12]
        return Settings.model_validate({**values, "state": str(state)})

    @cached_property
    def scoring(self) -> Settings:
        """The configuration that reads the labels of the target's validation split. Raises SourceRefused."""
        values = self.values(self.places.validation(self.row.target).settings())
        watch, state = {"folder": str(self.places.work / "drop")}, str(self.places.work / "scoring")
        return Settings.model_validate({**values, "watch": watch, "state": state})

    @cached_property
    def network(self) -> NetworkSettings:
        """The network."""
        return NetworkSettings.model_validate(self.values({})["network"])

    def digest(self) -> str:
        """Return a key that two runs share only if every setting that determines their results is equal.

        Defaults are in it: with those of a later mfmd it is another run.
        """
        part = self.settings.model_dump(mode="json", exclude=LOCAL)
        return digest_of(json.dumps([self.key, self.arm, part], sort_keys=True).encode())[:16]


def plan(places: Places, rows: Sequence[str], arms: Sequence[str], seeds: Sequence[int], lengths: Lengths) -> list[Job]:
    """Return the runs, in the order in which they share starts; an arm only where its row has a place for it."""
    return [
        Job(places, key, arm, seed, lengths)
        for key in rows
        for arm in ROWS[key].arms()
        if arm in arms
        for seed in seeds
    ]


def target_names(watch: WatchSettings) -> list[str]:
    """Return the names of the target images, relative to their folder."""
    unreadable = list[str]()
    names = list(FolderScan(watch).names(lambda folder, error: unreadable.append(f"{folder}: {error}")))
    if unreadable:
        raise OSError(f"{watch.folder}: cannot be read: {'; '.join(unreadable)}")
    return names


def _foundation_of(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the section of the term that compares features with a frozen model, as it stands in `values`."""
    found: dict[str, Any] = values["recipe"].get("advanced", {}).get("foundation", {})
    return found


def _preset(row: Row) -> dict[str, Any]:
    values: dict[str, Any] = yaml.safe_load((PRESETS / f"{row.preset}.yaml").read_text(encoding="utf-8"))
    return values
