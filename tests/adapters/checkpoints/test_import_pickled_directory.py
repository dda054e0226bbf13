"""Hugging Face directories with pickles alone: read with the flag only, whole or in shards, and named in each error."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from adapters.checkpoints.checkpoint import load_version
from adapters.checkpoints.importing import import_checkpoint
from adapters.errors import NetworkMismatch, UnsupportedModel
from configs.settings import Settings
from storage.registry.registry import CheckpointRegistry
from tests.adapters.checkpoints.conftest import Edit

INDEX = "pytorch_model.bin.index.json"


@pytest.fixture
def weights(saved: Path) -> dict[str, torch.Tensor]:
    """The model's weights, no longer in its directory."""
    found = load_file(saved / "model.safetensors")
    (saved / "model.safetensors").unlink()
    return found


def shard(folder: Path, weights: dict[str, torch.Tensor], count: int = 2) -> list[str]:
    """Save weights in shards with an index, as transformers did; return the files' names."""
    names = [f"pytorch_model-{number:05}-of-{count:05}.bin" for number in range(1, count + 1)]
    places = {key: names[number % count] for number, key in enumerate(weights)}
    for name in names:
        torch.save({key: value for key, value in weights.items() if places[key] == name}, folder / name)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return names


def test_the_flag_reads_the_whole_file(
    saved: Path, weights: dict[str, torch.Tensor], settings: Settings, registry: CheckpointRegistry
) -> None:
    torch.save(weights, saved / "pytorch_model.bin")
    torch.save({"lr": 1}, saved / "training_args.bin")
    with pytest.raises(UnsupportedModel, match=r"only pytorch_model\.bin, training_args\.bin.*--unsafe-pickle"):
        import_checkpoint(saved, settings, registry)
    heard: list[str] = []
    import_checkpoint(saved, settings, registry, unsafe_pickle=heard.append)
    assert len(heard) == 1 and "pytorch_model.bin" in heard[0], "tensors alone: no code ran"
    assert registry.history()[-1].reason == f"imported from {saved}"
    assert {path.name for path in saved.iterdir()} == {"config.json", "pytorch_model.bin", "training_args.bin"}


def test_shards_are_the_same_model(
    saved: Path, weights: dict[str, torch.Tensor], settings: Settings, registry: CheckpointRegistry
) -> None:
    names = shard(saved, weights)
    heard: list[str] = []
    version = import_checkpoint(saved, settings, registry, unsafe_pickle=heard.append).version
    assert [name for name in names if any(name in text for text in heard)] == names
    torch.save(weights, saved / "pytorch_model.bin")
    whole = import_checkpoint(saved, settings, registry, unsafe_pickle=heard.append).version
    states = [load_version(registry, number, torch.device("cpu"))[0].state_dict() for number in (version, whole)]
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())


def test_safetensors_are_preferred(saved: Path, settings: Settings, registry: CheckpointRegistry) -> None:
    (saved / "pytorch_model.bin").write_bytes(b"never read")
    heard: list[str] = []
    import_checkpoint(saved, settings, registry, unsafe_pickle=heard.append)
    assert heard == []


def test_errors_name_the_file_that_is_wrong(
    saved: Path, weights: dict[str, torch.Tensor], settings: Settings, registry: CheckpointRegistry
) -> None:
    def refused(kind: type[Exception]) -> str:
        with pytest.raises(kind) as caught:
            import_checkpoint(saved, settings, registry, unsafe_pickle=lambda text: None)
        return str(caught.value)

    torch.save(weights, saved / "weights.pt")
    assert f"{saved}: has neither pytorch_model.bin nor {INDEX}" in refused(UnsupportedModel)
    head = "decode_head.classifier.bias"
    torch.save({key: value for key, value in weights.items() if key != head}, saved / "pytorch_model.bin")
    assert f"{saved}: pytorch_model.bin: lacks weights" in refused(NetworkMismatch)
    torch.save(weights, saved / "pytorch_model.bin")
    content = (saved / "pytorch_model.bin").read_bytes()
    (saved / "pytorch_model.bin").write_bytes(content[: len(content) // 2])
    assert f"{saved}/pytorch_model.bin: cannot be read as a file of torch.save" in refused(UnsupportedModel)
    (saved / "pytorch_model.bin").unlink()
    second = shard(saved, weights)[1]
    (saved / second).unlink()
    assert f"{saved / second}: cannot be read: No such file" in refused(UnsupportedModel)
    for places in ({"a": "../weights.pt"}, {}, {"a": 1}, None):
        (saved / INDEX).write_text(json.dumps({"weight_map": places}))
        assert f"{saved / INDEX}: " in refused(UnsupportedModel)
    assert registry.versions() == []


def test_no_pickle_is_opened_for_classes_that_do_not_fit(
    saved: Path, configure: Edit, weights: dict[str, torch.Tensor], settings: Settings, registry: CheckpointRegistry
) -> None:
    torch.save(weights, saved / "pytorch_model.bin")
    configure(id2label={str(number): f"thing {number}" for number in range(8)})
    heard: list[str] = []
    with pytest.raises(NetworkMismatch, match="other names"):
        import_checkpoint(saved, settings, registry, unsafe_pickle=heard.append)
    assert heard == []
