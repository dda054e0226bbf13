"""A registry with two released versions and finished rounds on it, real files all of them."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from configs.settings import Settings
from storage.layout import StateLayout
from storage.registry.manifest import Manifest
from storage.registry.registry import CheckpointRegistry
from storage.rounds.folder import RoundFolder, RoundStore

NAMES = ("road", "building", "tree", "sky", "pole")
BETTER: dict[str, Any] = {"accuracy": 0.8, "confidence": 0.7, "styled": 0.78, "seed": 3}
"""A candidate that wins all votes."""
TENSORS = {"encoder.w": np.ones((2, 3), np.float32), "decoder.w": np.zeros(4, np.float32)}


@dataclass
class State:
    """Two released versions, the second of which serves, and room for rounds."""

    root: Path
    settings: Settings
    registry: CheckpointRegistry
    rounds: RoundStore

    @property
    def serving(self) -> int:
        """The version that serves."""
        ref = self.registry.serving()
        assert ref is not None
        return ref.version

    def events(self) -> list[tuple[str, int | None, int | None]]:
        """Event, version and round of each line of history."""
        return [(item.event, item.version, item.round) for item in self.registry.history()]

    def weights(self, value: float = 0.0, **tensors: np.ndarray) -> Path:
        """A weights file."""
        path = self.root / "weights.safetensors"
        save_file({**TENSORS, "decoder.w": np.full(4, value, np.float32), **tensors}, path)
        return path

    def finished(self, made: Any, weights: Path | None = None) -> RoundFolder:
        """The folder of a finished round on version 2."""
        folder = self.rounds.create(made.spec.model_copy(update={"incumbent": 2, "released": 2}))
        shutil.copy(weights or self.weights(7.0), folder.candidate)
        folder.enter("scoring")
        folder.write_scores(made.scores)
        return folder


def make_state(root: Path, **sections: dict[str, Any]) -> State:
    """A new one; `sections` are settings."""
    classes = [{"name": name, "color": (n, n, n)} for n, name in enumerate(NAMES)]
    settings = Settings.model_validate(
        {"state": root / "state", "classes": classes, "watch": {"folder": root / "drop"}, **sections}
    )
    layout = StateLayout(settings.state)
    layout.create()
    state = State(root, settings, CheckpointRegistry(layout.checkpoints), RoundStore(layout.rounds))
    manifest = Manifest(
        origin="pretrain",
        created=1.0,
        network={"name": "daformer", "encoder": "mit_tiny"},
        classes=tuple(classes),
        input_height=48,
        input_width=64,
        network_code="c" * 64,
        input_fit="squash",
        input_resample="bicubic",
    )
    for number in (1, 2):
        state.registry.add(state.weights(number), manifest, by="pretrain")
        state.registry.promote(number, by="pretrain", reason="first")
    return state
