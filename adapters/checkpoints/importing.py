"""`mfmd import`: register a model from outside."""

import json
import re
import tempfile
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from adapters.checkpoints.checkpoint import load_weights, make_manifest, save_weights, weight_problems
from adapters.checkpoints.pickles import PICKLES, Warn, read_pickle
from adapters.errors import NetworkMismatch, UnsupportedModel
from adapters.networks.build import build_network
from adapters.networks.huggingface.models import FAMILIES, load_huggingface
from adapters.networks.huggingface.pixels import scaling_of
from adapters.networks.network import SegmentationNetwork
from configs.network import Architecture
from configs.settings import Settings
from storage.errors import CorruptCheckpoint
from storage.registry.manifest import Manifest
from storage.registry.registry import CheckpointRegistry

_FORMATS = (
    f"a Hugging Face directory (config.json + safetensors; {', '.join(FAMILIES)}), a hub id (organisation/name), or a "
    ".safetensors file with the weights of the configuration's `network`"
)


def import_checkpoint(
    source: str | Path, settings: Settings, registry: CheckpointRegistry, *, unsafe_pickle: Warn | None = None
) -> Manifest:
    """Register the model at `source` as a new version (this alone does not serve it) and return its manifest.

    `source` is a directory, a file, or, when neither exists, a hub id. A pickle is opened only with `unsafe_pickle`,
    which is called with the warning first. The registered version is safetensors in any case. Raises UnsupportedModel
    for a file or model of another kind, NetworkMismatch when weights or classes do not fit.
    """
    path, reason = Path(source), f"imported from {source}"
    if not path.exists() and is_hub_id(str(source)):
        path = fetch(str(source))
        reason = f"{reason} at {path.name}"  # the commit
    if path.is_dir():
        network, architecture = _from_directory(path, settings)
    elif path.suffix in PICKLES and path.is_file():
        network, architecture = _from_pickle(path, settings, unsafe_pickle)
    else:
        network, architecture = _from_file(path, settings)
    manifest = make_manifest(settings, origin="import", network=architecture)
    with tempfile.TemporaryDirectory(prefix="mfmd-import-") as folder:
        weights = Path(folder) / "model.safetensors"
        save_weights(network, weights)
        return registry.add(weights, manifest, by="import", reason=reason)


def _from_file(path: Path, settings: Settings) -> tuple[SegmentationNetwork, Architecture]:
    if not path.is_file():
        raise UnsupportedModel(f"{path}: no such file or directory; `mfmd import` takes {_FORMATS}")
    if path.suffix != ".safetensors":
        raise UnsupportedModel(f"{path}: {path.suffix or 'no'} extension; `mfmd import` takes {_FORMATS}")
    architecture = settings.network.architecture().model_copy(update={"pretrained": None})
    network = build_network(architecture, len(settings.classes))
    try:
        load_weights(network, path)
    except CorruptCheckpoint as error:
        raise NetworkMismatch(f"{error}; expected the weights of network {architecture.name}") from error
    return network, architecture


def _from_pickle(path: Path, settings: Settings, warn: Warn | None) -> tuple[SegmentationNetwork, Architecture]:
    if warn is None:
        raise UnsupportedModel(
            f"{path}: {path.suffix} files are pickles, which run code when read; save the weights as safetensors, or, "
            "if you trust whoever made it, import it with --unsafe-pickle"
        )
    with tempfile.TemporaryDirectory(prefix="mfmd-pickle-") as folder:
        converted = Path(folder) / "model.safetensors"
        save_file(read_pickle(path, warn), converted)
        try:
            return _from_file(converted, settings)
        except NetworkMismatch as error:
            raise NetworkMismatch(str(error).replace(str(converted), str(path))) from error


def _from_directory(path: Path, settings: Settings) -> tuple[SegmentationNetwork, Architecture]:
    hf_config = _read_json(path / "config.json")
    if not any(path.glob("*.safetensors")):
        pickles = [item.name for item in path.iterdir() if item.suffix in PICKLES]
        found = f"only {', '.join(sorted(pickles))}, which run code when read" if pickles else "no weights"
        raise UnsupportedModel(f"{path}: holds {found}; save the model with safe_serialization=True")
    _check_class_order(hf_config, settings)
    file = path / "preprocessor_config.json"
    preprocessor = _read_json(file) if file.is_file() else None  # None: the directory does not say
    scaling_of(preprocessor)
    architecture = Architecture(name="huggingface", hf_config=hf_config, hf_preprocessor=preprocessor)
    network = load_huggingface(path, architecture, len(settings.classes))
    state = network.state_dict()
    if problems := weight_problems(state, state):  # values that are not finite
        raise NetworkMismatch(f"{path}: {'; '.join(problems)}")
    return network, architecture


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


_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_FILE_ENDINGS = (".safetensors", ".onnx", *PICKLES)
_WANTED = ["config.json", "preprocessor_config.json", "*.safetensors", "*.safetensors.index.json"]
"""Files to fetch: no pickles and no Python, because those run code."""


def is_hub_id(source: str) -> bool:
    """Return whether `source` can be a hub id, `organisation/name`, and not a file."""
    return _HUB_ID.fullmatch(source) is not None and not source.endswith(_FILE_ENDINGS)


def fetch(hub_id: str) -> Path:
    """Return the local directory of a hub model; its name is the commit. Raises UnsupportedModel if unavailable."""
    import httpx
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(hub_id, allow_patterns=_WANTED))
    except LocalEntryNotFoundError as error:
        raise UnsupportedModel(
            f"{hub_id}: no such directory here, and the hub cannot be reached to look for a model of that name; "
            "give a local directory, or connect (HF_HUB_OFFLINE must not be set) and try again"
        ) from error
    except (HfHubHTTPError, HFValidationError, httpx.HTTPError) as error:
        raise UnsupportedModel(
            f"{hub_id}: no such directory here, and the hub gives no model of that name ({type(error).__name__}); "
            "check the id, sign in with `hf auth login` if the model is gated, or give a local directory"
        ) from error
