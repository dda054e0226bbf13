"""A round's training state: saved while it trains, so that a killed round resumes and the next one can inherit.

Accelerate's `save_state` writes the optimizer, the loss scaler and every process's random state. The rest is written
here: each module as safetensors, counters and positions as JSON. Objects given to
`Accelerator.register_for_checkpointing` would be pickled, and reading them would run whatever is in them
(docs/explanation/decisions/0009-rounds-that-continue.md).

    state/000400/{student,teacher,rebuilder}.safetensors    weights, statistics; not the base of a version
    state/000400/{state.json,state.safetensors}             counters, positions of the streams, random generator
    state/000400/statistics_N.safetensors                   BatchNorm statistics of process N, but the first
    state/000400/{optimizer.bin,random_states_N.pkl}        Accelerate's own, read with `weights_only`
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from adapters.checkpoints.bases import load_beside_base, save_beside_base
from adapters.errors import AdapterError
from adapters.rounds.training import Training
from storage.durable.record import FORMAT, USE_NEWER
from storage.rounds.training_states import TrainingStates

ROUNDING = 1e-6
"""Largest difference of an inherited network's weights from the serving version's: the same average, perhaps computed
on another device."""

TREE_FORMAT = 1
"""Format of `state.json`; another one is refused."""


class StateRefused(AdapterError):
    """A training state cannot be inherited; the round starts clean and reports why."""


@dataclass(frozen=True, slots=True)
class Counters:
    """Progress of a round."""

    steps: int = 0
    """Optimizer steps done in this round."""
    training_seconds: float = 0.0
    """Used time budget, over all starts of the round (seconds)."""
    seconds: float = 0.0
    """Wall time of the round so far, over all its starts (seconds)."""


class TrainingState:
    """Saves what `training` must continue from into the round's folder, and loads it; equally in every process."""

    def __init__(self, training: Training, states: TrainingStates) -> None:
        self._training, self._states = training, states
        self._accelerator = training.accelerator

    def save(self, counters: Counters) -> None:
        """Save everything as the state of `counters.steps`; the state before it is removed once this one is complete.

        Raises OSError or DurabilityLost; the newest complete state then still exists.
        """
        accelerator, step = self._accelerator, counters.steps
        if accelerator.is_main_process:
            self._states.begin(step)
        accelerator.wait_for_everyone()
        draft = self._states.draft(step)
        self._write(draft, counters)
        accelerator.save_state(str(draft))
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            self._states.publish(step)
        accelerator.wait_for_everyone()

    def resume(self, path: Path) -> Counters:
        """Continue exactly from the state at `path`. Raises AdapterError when it cannot be read."""
        try:
            tree = self._load(path)
            self._training.load_state_dict(tree["training"])
            return Counters(**tree["counters"])
        except Exception as error:
            raise AdapterError(f"{path}: cannot resume from this training state: {error}") from error

    def inherit(self, path: Path) -> None:
        """Start a new round from the state at `path`: weights, teacher, Rebuilder, moments and step counts.

        Crops, random numbers and learning rates are the new round's own. The network of the state must be the serving
        version, whose weights the student has now. Raises StateRefused otherwise, and when the state does not fit;
        networks and optimizer are then in no usable state.
        """
        training = self._training
        # Dropout is seeded anew and all take the first process's statistics: a state that fewer processes left will do.
        serving = {name: weight.detach().clone() for name, weight in training.student.named_parameters()}
        assert training.optimizer is not None  # statistics are of one round's frames
        groups = training.optimizer.param_groups
        rates = [{name: value for name, value in group.items() if name != "params"} for group in groups]
        try:
            training.inherit_state_dict(self._load(path, own=False)["training"])
            self._check(serving)
        except StateRefused:
            raise
        except Exception as error:
            raise StateRefused(f"{path}: does not fit this round: {error}") from error
        for group, own in zip(training.optimizer.param_groups, rates, strict=True):
            group.update(own)

    def _check(self, serving: dict[str, Tensor]) -> None:
        finished = dict(self._training.recipe.finished().named_parameters())
        strange = [
            name
            for name, weight in serving.items()
            if not torch.allclose(weight, finished[name], rtol=ROUNDING, atol=ROUNDING)
        ]
        if strange:
            raise StateRefused(f"its network is not the serving version: {len(strange)} weights differ ({strange[0]})")

    def _write(self, path: Path, counters: Counters) -> None:
        modules = self._training.recipe.modules()
        if not self._accelerator.is_main_process:
            save_file(_statistics(modules), self._own_statistics(path))
            return
        for name, module in modules.items():
            save_beside_base(module, path / f"{name}.safetensors")
        write_tree(path, {"counters": asdict(counters), "training": self._training.state_dict()})

    def _load(self, path: Path, *, own: bool = True) -> dict[str, Any]:
        """Load modules, optimizer and scaler; return the rest as it was written.

        `own`: this process must find its own random state and BatchNorm statistics.
        """
        self._read_modules(path, own=own)
        torch.manual_seed(0)
        before = torch.get_rng_state()
        self._accelerator.load_state(str(path))
        if own and torch.equal(before, torch.get_rng_state()):  # Accelerate only logs it
            raise ValueError(f"no random state of process {self._accelerator.process_index}")
        return read_tree(path)

    def _read_modules(self, path: Path, *, own: bool) -> None:
        modules = self._training.recipe.modules()
        for name, module in modules.items():
            load_beside_base(module, path / f"{name}.safetensors")
        if own and not self._accelerator.is_main_process:
            mine = load_file(self._own_statistics(path))
            for name, buffer in _statistics(modules).items():
                buffer.copy_(mine[name])

    def _own_statistics(self, path: Path) -> Path:
        return path / f"statistics_{self._accelerator.process_index}.safetensors"


def _statistics(modules: dict[str, nn.Module]) -> dict[str, Tensor]:
    """Return the live running statistics; each process has its own unless BatchNorm is synchronised."""
    return {
        f"{name}.{layer}.{key}": buffer
        for name, module in modules.items()
        for layer, found in module.named_modules()
        if isinstance(found, _BatchNorm)
        for key, buffer in found.named_buffers()
    }


_TENSOR = "tensor:"
"""Marks the place of a tensor in the JSON, followed by the tensor's name."""


def write_tree(folder: Path, tree: dict[str, Any]) -> None:
    """Write nested dicts and lists of JSON values and tensors into `folder`.

    Raises TypeError for anything else, and for keys that are not text.
    """
    tensors: dict[str, Tensor] = {}
    values = {FORMAT: TREE_FORMAT} | _without_tensors(tree, "", tensors)
    (folder / "state.json").write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
    save_file(tensors, folder / "state.safetensors")


def read_tree(folder: Path) -> dict[str, Any]:
    """Read what `write_tree` wrote, tensors on the CPU. Raises OSError, ValueError or SafetensorError when damaged."""
    tensors = load_file(folder / "state.safetensors")
    values = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    if (found := values.pop(FORMAT, 1)) != TREE_FORMAT:
        raise ValueError(f"it has format {found}, this mfmd reads {TREE_FORMAT}; {USE_NEWER}")
    tree: dict[str, Any] = _with_tensors(values, tensors)
    return tree


def _without_tensors(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        tensors[name] = value.detach().cpu().contiguous().clone()
        return _TENSOR + name
    if isinstance(value, dict):
        if not all(isinstance(key, str) for key in value):
            raise TypeError(f"{name}: a training state has text keys only, not {[*value]}")
        return {key: _without_tensors(item, f"{name}/{key}", tensors) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_tensors(item, f"{name}/{place}", tensors) for place, item in enumerate(value)]
    return value


def _with_tensors(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, str) and value.startswith(_TENSOR):
        return tensors[value.removeprefix(_TENSOR)]
    if isinstance(value, dict):
        return {key: _with_tensors(item, tensors) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_tensors(item, tensors) for item in value]
    return value
