"""`mfmd import`: register a model from outside."""

import shutil
import tempfile
from pathlib import Path

from safetensors.torch import save_file

from adapters.checkpoints.bases import save_split
from adapters.checkpoints.checkpoint import load_weights, make_manifest
from adapters.checkpoints.class_names import check_classes
from adapters.checkpoints.hub import Located, locate
from adapters.checkpoints.model_files import FORMATS, read_config, read_preprocessor
from adapters.checkpoints.pickles import Warn, convert_directory, read_pickle
from adapters.errors import NetworkMismatch, UnsupportedModel
from adapters.inference.proof import prove
from adapters.networks.build import build_checked
from adapters.networks.frozen import base_names
from adapters.networks.huggingface.input_size import input_notes
from adapters.networks.huggingface.models import load_huggingface, with_recorded
from adapters.networks.huggingface.pixels import scaling_of
from adapters.networks.network import SegmentationNetwork
from adapters.networks.weight_files import PICKLES, only_pickles
from configs.network import Architecture
from configs.settings import Settings
from storage.errors import CorruptCheckpoint
from storage.registry.manifest import Manifest
from storage.registry.registry import CheckpointRegistry


def import_checkpoint(
    source: str | Path | Located,
    settings: Settings,
    registry: CheckpointRegistry,
    *,
    unsafe_pickle: Warn | None = None,
    by_position: bool = False,
    note: Warn = lambda text: None,
) -> Manifest:
    """Register the model at `source` as a new version (this alone does not serve it) and return its manifest.

    `source` is one that `locate` takes, or what it returned. A pickle is opened only with `unsafe_pickle`, which is
    called with the warning first; `by_position` accepts other class names. `note` hears what the model leaves open. The
    registered version is safetensors in any case, and ran once as it would serve. Raises UnsupportedModel for a file or
    model of another kind, NetworkMismatch when weights or classes do not fit, ModelFails when it cannot run.
    """
    model = source if isinstance(source, Located) else locate(source, pickles=unsafe_pickle is not None)
    path = model.path
    if path.is_dir():
        network, architecture = _from_directory(path, settings, by_position, note, unsafe_pickle)
    elif path.suffix in PICKLES and path.is_file():
        network, architecture = _from_pickle(path, settings, unsafe_pickle)
    else:
        network, architecture = _from_file(path, settings)
    manifest = make_manifest(settings, origin="import", network=architecture, network_code=network.source_digest)
    with tempfile.TemporaryDirectory(prefix="mfmd-import-") as folder:
        saved = save_split(network, base_names(network), Path(folder))
        prove(network, settings, model.origin)
        reason = f"imported from {model.origin}"
        return registry.add(saved.weights, manifest, by="import", reason=reason, base=saved.base)


def _from_file(path: Path, settings: Settings) -> tuple[SegmentationNetwork, Architecture]:
    if not path.is_file():
        raise UnsupportedModel(f"{path}: no such file or directory; `mfmd import` takes {FORMATS}")
    if path.suffix != ".safetensors":
        raise UnsupportedModel(f"{path}: {path.suffix or 'no'} extension; `mfmd import` takes {FORMATS}")
    architecture = settings.network.architecture().model_copy(update={"pretrained": None})
    network = build_checked(architecture, len(settings.classes))
    try:
        load_weights(network, path, foreign=True)
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
    path: Path, settings: Settings, by_position: bool, note: Warn, warn: Warn | None
) -> tuple[SegmentationNetwork, Architecture]:
    hf_config = read_config(path)
    pickled = only_pickles(path)
    if pickled:
        _allow_pickles(path, warn)
    names = [entry.name for entry in settings.classes]
    check_classes(hf_config, names, by_position=by_position, note=note)
    preprocessor = read_preprocessor(path)
    if preprocessor is None:
        note(
            f"{path} has no preprocessor_config.json, and no processor_config.json with an image_processor; pixels are "
            "scaled with the mean and deviation of ImageNet"
        )
    scaling_of(preprocessor)
    for text in input_notes(preprocessor, settings):
        note(text)
    architecture = Architecture(name="huggingface", hf_config=hf_config, hf_preprocessor=preprocessor)
    if pickled and warn is not None:
        network = _load_pickled(path, architecture, len(names), warn)
    else:
        network = load_huggingface(path, architecture, len(names))
    return network, with_recorded(architecture, network)


def _allow_pickles(path: Path, warn: Warn | None) -> None:
    """Refuse a directory without safetensors that has no pickle either, or whose pickles nobody asked to read."""
    pickles = sorted(item.name for item in path.iterdir() if item.suffix in PICKLES)
    if not pickles:
        raise UnsupportedModel(f"{path}: holds no weights; save the model with safe_serialization=True")
    if warn is None:
        raise UnsupportedModel(
            f"{path}: holds only {', '.join(pickles)}, which run code when read; save the model with "
            "safe_serialization=True, or, if you trust whoever made it, import it with --unsafe-pickle"
        )


def _load_pickled(path: Path, architecture: Architecture, classes: int, warn: Warn) -> SegmentationNetwork:
    """Load a directory whose weights are pickles: they are written as safetensors to a temporary folder first."""
    with tempfile.TemporaryDirectory(prefix="mfmd-pickle-") as folder:
        originals = convert_directory(path, Path(folder), warn)
        shutil.copyfile(path / "config.json", Path(folder) / "config.json")
        try:
            return load_huggingface(Path(folder), architecture, classes)
        except (UnsupportedModel, NetworkMismatch) as error:
            text = str(error).replace(folder, str(path))
            for new, original in originals.items():
                text = text.replace(new, original)
            raise type(error)(text) from error
