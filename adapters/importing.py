"""`mfmd import`: bring a model from elsewhere into the registry."""

import json
import tempfile
from pathlib import Path
from typing import Any

from adapters.build import build_network
from adapters.checkpoint import load_weights, make_manifest, save_weights, weight_problems
from adapters.errors import NetworkMismatch, UnsupportedModel
from adapters.huggingface import load_huggingface
from adapters.inference import IMAGENET_MEAN, IMAGENET_STD
from adapters.network import SegmentationNetwork
from configs.settings import NetworkSettings, Settings
from storage.errors import CorruptCheckpoint
from storage.manifest import Manifest
from storage.registry import CheckpointRegistry

_FORMATS = (
    "a Hugging Face directory (config.json + model.safetensors, segformer or upernet), or a .safetensors file with the "
    "weights of the configuration's `network`"
)
_PICKLES = frozenset({".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth"})


def import_checkpoint(path: Path, settings: Settings, registry: CheckpointRegistry) -> Manifest:
    """Register the model at `path` as a new version (it does not serve by that alone) and return its manifest.

    Raises UnsupportedModel for a file or model of another kind, NetworkMismatch when weights or classes do not fit.
    """
    if path.is_dir():
        network, architecture = _from_directory(path, settings)
    else:
        network, architecture = _from_file(path, settings)
    manifest = make_manifest(settings, origin="import", network=architecture)
    with tempfile.TemporaryDirectory(prefix="mfmd-import-") as folder:
        weights = Path(folder) / "model.safetensors"
        save_weights(network, weights)
        return registry.add(weights, manifest, by="import", reason=f"imported from {path}")


def _from_file(path: Path, settings: Settings) -> tuple[SegmentationNetwork, NetworkSettings]:
    if not path.is_file():
        raise UnsupportedModel(f"{path}: no such file or directory; `mfmd import` takes {_FORMATS}")
    if path.suffix in _PICKLES:
        raise UnsupportedModel(
            f"{path}: {path.suffix} files are pickles, which run code when read; save the weights as safetensors"
        )
    if path.suffix != ".safetensors":
        raise UnsupportedModel(f"{path}: {path.suffix or 'no'} extension; `mfmd import` takes {_FORMATS}")
    architecture = settings.network.model_copy(update={"pretrained": None})
    network = build_network(architecture, len(settings.classes))
    try:
        load_weights(network, path)
    except CorruptCheckpoint as error:
        raise NetworkMismatch(f"{error}; expected the weights of network {architecture.name}") from error
    return network, architecture


def _from_directory(path: Path, settings: Settings) -> tuple[SegmentationNetwork, NetworkSettings]:
    hf_config = _read_json(path / "config.json")
    if not any(path.glob("*.safetensors")):
        pickles = [item.name for item in path.iterdir() if item.suffix in _PICKLES]
        found = f"only {', '.join(sorted(pickles))}, which run code when read" if pickles else "no weights"
        raise UnsupportedModel(f"{path}: holds {found}; save the model with safe_serialization=True")
    _check_class_order(hf_config, settings)
    _check_normalisation(path)
    network = load_huggingface(path, hf_config, len(settings.classes))
    _check_finite(network, path)
    return network, NetworkSettings(name="huggingface", hf_config=hf_config)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UnsupportedModel(f"{path}: no such file; `mfmd import` takes {_FORMATS}") from error
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UnsupportedModel(f"{path}: not readable as JSON: {error}") from error
    if not isinstance(content, dict):
        raise UnsupportedModel(f"{path}: expected a JSON object, found a {type(content).__name__}")
    return content


def _check_class_order(hf_config: dict[str, Any], settings: Settings) -> None:
    """Refuse a model whose class names are ours in another order: its masks would be silently mislabelled."""
    labels = hf_config.get("id2label")
    if not isinstance(labels, dict):
        return
    if not all(key.isdecimal() for key in labels):
        raise UnsupportedModel("config.json: id2label must map class numbers to names")
    theirs = [str(labels[key]).lower() for key in sorted(labels, key=int)]
    ours = [entry.name.lower() for entry in settings.classes]
    if theirs != ours and sorted(theirs) == sorted(ours):
        place = next(index for index, (a, b) in enumerate(zip(theirs, ours, strict=True)) if a != b)
        raise NetworkMismatch(
            f"config.json: class {place} is {theirs[place]!r} in the model and {ours[place]!r} in `classes`; "
            "give `classes` in the model's order"
        )


def _check_finite(network: SegmentationNetwork, path: Path) -> None:
    state = network.state_dict()
    problems = weight_problems(state, state)
    if problems:
        raise NetworkMismatch(f"{path}: {'; '.join(problems)}")


def _check_normalisation(path: Path) -> None:
    """Refuse a model that was trained on pixels scaled in another way than ours."""
    file = path / "preprocessor_config.json"
    if not file.is_file():
        return
    content = _read_json(file)
    for key, ours in (("image_mean", IMAGENET_MEAN), ("image_std", IMAGENET_STD)):
        theirs = content.get(key)
        if theirs is not None and any(abs(a - b) > 1e-3 for a, b in zip(theirs, ours, strict=False)):
            raise UnsupportedModel(f"{file}: {key} is {theirs}; mfmd gives networks ImageNet statistics {list(ours)}")
