"""`mfmd import`: register a model from outside."""

import json
import re
import tempfile
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from adapters.checkpoints.checkpoint import load_weights, make_manifest, save_weights
from adapters.checkpoints.class_names import check_classes
from adapters.checkpoints.pickles import PICKLES, Warn, read_pickle
from adapters.errors import NetworkMismatch, UnsupportedModel
from adapters.inference.proof import prove
from adapters.networks.build import build_network
from adapters.networks.huggingface.models import FAMILIES, load_huggingface
from adapters.networks.huggingface.pixels import scaling_of
from adapters.networks.network import SegmentationNetwork
from adapters.networks.weight_files import weight_problems
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
    source: str | Path,
    settings: Settings,
    registry: CheckpointRegistry,
    *,
    unsafe_pickle: Warn | None = None,
    by_position: bool = False,
    note: Warn = lambda text: None,
) -> Manifest:
    """Register the model at `source` as a new version (this alone does not serve it) and return its manifest.

    `source` is a directory, a file, or, when neither exists, a hub id. A pickle is opened only with `unsafe_pickle`,
    which is called with the warning first; `by_position` accepts other class names. `note` hears what the model leaves
    open. The registered version is safetensors in any case, and ran once as it would serve. Raises UnsupportedModel for
    a file or model of another kind, NetworkMismatch when weights or classes do not fit, ModelFails when it cannot run.
    """
    path, reason = Path(source), f"imported from {source}"
    if not path.exists() and is_hub_id(str(source)):
        path = fetch(str(source))
        reason = f"{reason} at {path.name}"  # the commit
    if path.is_dir():
        network, architecture = _from_directory(path, settings, by_position, note)
    elif path.suffix in PICKLES and path.is_file():
        network, architecture = _from_pickle(path, settings, unsafe_pickle)
    else:
        network, architecture = _from_file(path, settings)
    manifest = make_manifest(settings, origin="import", network=architecture)
    with tempfile.TemporaryDirectory(prefix="mfmd-import-") as folder:
        weights = Path(folder) / "model.safetensors"
        save_weights(network, weights)
        prove(network, settings, str(source))
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


def _from_directory(
    path: Path, settings: Settings, by_position: bool, note: Warn
) -> tuple[SegmentationNetwork, Architecture]:
    if not (path / "config.json").exists():
        inside = sorted(
            str(file.parent) for file in (*path.glob("*/config.json"), *path.glob("snapshots/*/config.json"))
        )
        hint = (
            f"give the directory of one model: {', '.join(inside[:3])}" if inside else f"`mfmd import` takes {_FORMATS}"
        )
        raise UnsupportedModel(f"{path / 'config.json'}: no such file; {hint}")
    hf_config = _read_json(path / "config.json")
    if not any(path.glob("*.safetensors*")):
        pickles = [item.name for item in path.iterdir() if item.suffix in PICKLES]
        found = f"only {', '.join(sorted(pickles))}, which run code when read" if pickles else "no weights"
        raise UnsupportedModel(f"{path}: holds {found}; save the model with safe_serialization=True")
    names = [entry.name for entry in settings.classes]
    check_classes(hf_config, names, by_position=by_position, note=note)
    preprocessor = _preprocessor_of(path)
    if preprocessor is None:
        note(f"{path} has no preprocessor_config.json; pixels are scaled with the mean and deviation of ImageNet")
    scaling_of(preprocessor)
    architecture = Architecture(name="huggingface", hf_config=hf_config, hf_preprocessor=preprocessor)
    network = load_huggingface(path, architecture, len(settings.classes))
    state = network.state_dict()
    if problems := weight_problems(state, state):  # values that are not finite
        raise NetworkMismatch(f"{path}: {'; '.join(problems)}")
    return network, architecture


def _preprocessor_of(path: Path) -> dict[str, Any] | None:
    """Return the image processor's settings, from the file of either generation; None: the directory does not say."""
    if (file := path / "preprocessor_config.json").is_file():
        return _read_json(file)
    if (file := path / "processor_config.json").is_file():  # transformers 5 may save one file for all processors
        inner = _read_json(file).get("image_processor")
        return inner if isinstance(inner, dict) else None
    return None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UnsupportedModel(f"{path}: not readable as JSON: {error}") from error
    if not isinstance(content, dict):
        raise UnsupportedModel(f"{path}: expected a JSON object, found a {type(content).__name__}")
    return content


_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_FILE_ENDINGS = (".safetensors", ".onnx", *PICKLES)
_WANTED = [
    "config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "*.safetensors",
    "*.safetensors.index.json",
]
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
