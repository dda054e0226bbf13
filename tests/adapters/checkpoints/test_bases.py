"""Versions of a network of which most is frozen: what is stored once, and that nothing else is ever served."""

import copy
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from adapters.checkpoints.bases import load_beside_base, save_beside_base
from adapters.checkpoints.checkpoint import load_version, load_weights, read_weights, save_weights
from adapters.checkpoints.exporting.export import export_version
from adapters.checkpoints.importing import import_checkpoint
from adapters.errors import NetworkMismatch
from adapters.networks.build import build_network
from adapters.networks.frozen import base_names
from adapters.networks.network import SegmentationNetwork
from adapters.rounds.run import train_and_score
from adapters.rounds.stop import StopRequest
from adapters.self_training.teacher import Teacher
from configs.network import Architecture
from configs.settings import Settings
from daemon.gate.promotion import advance_round
from storage.errors import CorruptCheckpoint
from storage.registry.bases import base_named_in
from storage.registry.registry import CheckpointRegistry
from tests.adapters.frozen_network import FROZEN, NAME, add_version, built
from tests.adapters.recipes.recipe_steps import recipe_of

CPU = torch.device("cpu")
OWN = {"network": {"name": NAME}}


@pytest.fixture
def settings(training_state) -> Settings:
    return training_state.settings(**OWN)


@pytest.fixture
def registry(training_state) -> CheckpointRegistry:
    training_state.layout.create()
    return CheckpointRegistry(training_state.layout.checkpoints)


def same(one: SegmentationNetwork, other: SegmentationNetwork) -> bool:
    theirs = other.state_dict()
    return all(torch.equal(value, theirs[name]) for name, value in one.state_dict().items())


def keys(path: Path) -> set[str]:
    with safe_open(path, framework="pt") as file:
        return set(file.keys())


def test_the_base_is_what_is_frozen_but_batch_norm_statistics(settings: Settings) -> None:
    network = built(settings)
    assert base_names(network) == {f"encoder.{name}" for name in FROZEN}
    assert base_names(network.requires_grad_(True)) == frozenset()


@pytest.mark.parametrize(
    "chosen",
    [
        Architecture(name="light", encoder="dinov3_tiny"),  # its mask token is frozen
        Architecture(name="pyramid", encoder="dinov2_adapter_tiny"),  # its last norm is
        Architecture(name="deeplabv2", encoder="resnet_tiny"),
    ],
    ids=lambda chosen: chosen.encoder,
)
def test_networks_with_little_or_nothing_frozen_stay_one_file(chosen: Architecture) -> None:
    assert base_names(build_network(chosen, 3)) == frozenset()


def test_versions_share_one_base_and_load_as_they_were(
    settings: Settings, registry: CheckpointRegistry, tmp_path: Path
) -> None:
    networks = [built(settings, trained=number) for number in range(3)]
    for network in networks:
        version = add_version(registry, settings, tmp_path / "saved", network)
        loaded, manifest = load_version(registry, version, CPU)
        assert same(loaded, network) and manifest.base is not None
        assert loaded.base is not None and loaded.base.names == base_names(network)
        assert not keys(registry.weights_path(version)) & loaded.base.names
    assert len(list(registry.bases.folder.iterdir())) == 1
    other = built(settings, backbone=7)
    assert same(load_version(registry, add_version(registry, settings, tmp_path / "saved", other), CPU)[0], other)
    assert len(list(registry.bases.folder.iterdir())) == 2


def test_an_import_is_stored_in_two_files_and_a_part_is_no_import(
    settings: Settings, registry: CheckpointRegistry, tmp_path: Path
) -> None:
    network = built(settings)
    save_weights(network, tmp_path / "whole.safetensors")
    version = import_checkpoint(tmp_path / "whole.safetensors", settings, registry).version
    assert same(load_version(registry, version, CPU)[0], network)
    digest = base_named_in(registry.weights_path(version))
    with pytest.raises(NetworkMismatch, match=f"holds only what is not in base {digest}.*`mfmd export`"):
        import_checkpoint(registry.weights_path(version), settings, registry)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda base: base.unlink(), "missing; versions with this base cannot serve: restore it from a backup"),
        (lambda base: base.write_bytes(base.read_bytes()[:-1] + b"!"), "content has SHA-256 [0-9a-f]{64}, not that"),
    ],
    ids=["missing", "other digest"],
)
def test_an_export_without_its_base_writes_nothing(
    settings: Settings, registry: CheckpointRegistry, tmp_path: Path, damage: Callable[[Path], object], said: str
) -> None:
    version = add_version(registry, settings, tmp_path / "saved", built(settings))
    damage(registry.weight_files(version)[1])
    with pytest.raises(CorruptCheckpoint, match=rf"bases/[0-9a-f]{{64}}\.safetensors: {said}"):
        export_version(registry, version, "onnx", tmp_path / "mirror" / "1")
    assert not (tmp_path / "mirror").exists() and registry.versions() == [version]


def test_a_base_of_other_shapes_or_names_is_refused(
    settings: Settings, registry: CheckpointRegistry, tmp_path: Path
) -> None:
    version = add_version(registry, settings, tmp_path / "saved", built(settings))
    weights, base = registry.weight_files(version)
    wide = settings.network.architecture().model_copy(update={"options": {"width": 48}})
    network = build_network(wide, 3)
    before = copy.deepcopy(network)
    with pytest.raises(CorruptCheckpoint, match=rf"with base {base.name}: has a wrong shape for .*encoder\.mixer"):
        load_weights(network, weights, base)
    assert same(network, before)
    with pytest.raises(CorruptCheckpoint, match=rf"{base.name}: holds \S+, which is in .* too"):
        read_weights(base, base)


def test_a_network_whose_frozen_part_changed_is_stored_whole(
    settings: Settings, registry: CheckpointRegistry, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    network, _ = load_version(registry, add_version(registry, settings, tmp_path / "saved", built(settings)), CPU)
    assert network.base is not None
    save_beside_base(network, tmp_path / "part.safetensors")
    assert base_named_in(tmp_path / "part.safetensors") == network.base.digest
    other = copy.deepcopy(network)
    with torch.no_grad():
        other.get_parameter("encoder.mixer.weight")[0, 0, 0, 0] += 1e-6
    with caplog.at_level(logging.WARNING):
        save_beside_base(other, tmp_path / "whole.safetensors")
    assert "1 frozen tensors are not as stored there (encoder.mixer.weight): all weights are stored" in caplog.text
    assert base_named_in(tmp_path / "whole.safetensors") is None
    load_beside_base(network, tmp_path / "whole.safetensors")
    assert same(network, other)
    load_beside_base(network, tmp_path / "part.safetensors")
    plain = build_network(settings.network.architecture(), 3)
    with pytest.raises(ValueError, match=r"belongs to base .*, the network to none"):
        load_beside_base(plain, tmp_path / "part.safetensors")


def test_a_teacher_shares_the_base_and_follows_in_the_rest(
    settings: Settings, registry: CheckpointRegistry, tmp_path: Path
) -> None:
    version = add_version(registry, settings, tmp_path / "saved", built(settings))
    student, plain = (load_version(registry, version, CPU)[0] for _ in range(2))
    plain.base = None
    sharing, apart = Teacher(student, 0.9), Teacher(plain, 0.9)
    mine, theirs = (
        sharing.network.get_parameter("encoder.mixer.weight"),
        apart.network.get_parameter("encoder.mixer.weight"),
    )
    assert mine is student.get_parameter("encoder.mixer.weight") and theirs is not plain.get_parameter(
        "encoder.mixer.weight"
    )
    for network in (student, plain):
        torch.manual_seed(3)
        with torch.no_grad():
            for value in network.parameters():
                if value.requires_grad:
                    value.normal_()
    for teacher, network in ((sharing, student), (apart, plain)):
        teacher.update(network, 4)
    assert same(sharing.network, apart.network)
    assert not same(sharing.network, student)


def test_dida_shares_what_is_frozen_and_saves_the_rest(
    settings: Settings, registry: CheckpointRegistry, tmp_path: Path
) -> None:
    version = add_version(registry, settings, tmp_path / "saved", built(settings))
    students = [load_version(registry, version, CPU)[0] for _ in range(2)]
    terms = [recipe_of(student, dida={"enabled": True}).modules()["dida"] for student in students]
    for name, value in terms[0].named_parameters():
        if name.startswith("encoder."):
            assert (value is students[0].get_parameter(name)) == (name.removeprefix("encoder.") in FROZEN), name
    with torch.no_grad():
        for value in terms[0].parameters():
            if value.requires_grad:
                value.normal_()
    save_beside_base(terms[0], tmp_path / "dida.safetensors")
    base = students[0].base
    assert base is not None and base_named_in(tmp_path / "dida.safetensors") == base.digest
    assert keys(tmp_path / "dida.safetensors") == terms[0].state_dict().keys() - base.names
    load_beside_base(terms[1], tmp_path / "dida.safetensors")
    found = terms[1].state_dict()
    assert all(torch.equal(value, found[name]) for name, value in terms[0].state_dict().items())


def test_a_round_stores_its_states_and_its_candidate_without_the_base(
    training_state, registry: CheckpointRegistry, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = training_state.settings(
        **OWN,
        gate={"policy": "always"},
        round={"advanced": {"average_ratios": [0.3]}},
        recipe={"advanced": {"dida": {"enabled": True}}},
    )
    training_state.draw_source()
    training_state.fill_buffer(settings)
    first = add_version(registry, settings, tmp_path / "saved", built(settings))
    registry.promote(first, by="operator", reason="")
    folder = training_state.spec(settings)
    with StopRequest() as stop:
        assert train_and_score(folder.spec_path, stop) == 0
    start, _ = load_version(registry, first, CPU)
    assert start.base is not None
    state = folder.states.latest()
    assert state is not None
    for path in (
        state / "student.safetensors",
        state / "teacher.safetensors",
        state / "dida.safetensors",
        folder.candidate,
        folder.other("average_30"),
    ):
        assert base_named_in(path) == start.base.digest and not keys(path) & start.base.names, path
    assert advance_round(registry, folder, settings) == "promoted"
    candidate, manifest = load_version(registry, 2, CPU)
    assert manifest.base == registry.manifest(first).base and len(list(registry.bases.folder.iterdir())) == 1
    assert not torch.equal(candidate.get_parameter("encoder.tokens.token"), start.get_parameter("encoder.tokens.token"))
    heir = training_state.spec(settings)
    heir.spec_path.write_text(heir.spec().model_copy(update={"inherits": folder.number}).model_dump_json())
    with StopRequest() as stop:
        assert train_and_score(heir.spec_path, stop) == 0
    assert "inherits the training state of round 1" in capsys.readouterr().err
    assert base_named_in(heir.candidate) == start.base.digest
