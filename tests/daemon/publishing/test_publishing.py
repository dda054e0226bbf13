"""The daemon's mirrors: real exports in real children, what a failure does, and that nothing waits for one."""

import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml

from adapters.checkpoints.checkpoint import make_manifest, save_weights
from adapters.networks.build import build_network
from daemon.gate import moves
from daemon.metrics import Metrics
from daemon.publishing.publisher import Publisher
from daemon.runtime.backoff import Backoff
from daemon.runtime.process_group import children_of
from daemon.status.collect import collect_status
from daemon.status.messages import operator_messages
from storage import durable
from storage.errors import DurabilityLost
from tests.storage.registry.mirrored import export, what_a_reader_finds

PATIENCE = 400.0
"""Longest wait for real exports (seconds): several times what a busy machine needs."""
LATER, AT_ONCE = 600.0, 0.05
"""When a failed attempt is followed by another (seconds)."""


@pytest.fixture(params=[LATER])
def daemon(request, make_settings, registry, layout, tmp_path):
    """A publisher to a Triton repository and a Hugging Face folder, and the file that its children read."""
    settings = make_settings(
        network={"name": "deeplabv2", "encoder": "resnet_tiny", "channels": 16},
        publish={"triton": tmp_path / "triton", "huggingface": tmp_path / "hf"},
    )
    config = tmp_path / "mfmd.yaml"
    config.write_text(yaml.safe_dump(settings.model_dump(mode="json", exclude_defaults=True)))
    metrics = Metrics(settings)
    retries = Backoff(base=request.param, cap=request.param)
    publisher = Publisher(settings, config, registry, metrics.publish, retries)

    def until(condition) -> None:
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < deadline, publisher.states()
            publisher.step()
            time.sleep(0.02)

    def value(name: str, **labels: str) -> float:
        return metrics.registry.get_sample_value(name, labels) or 0.0

    triton, hugging_face = (target._mirror for target in publisher._targets)
    yield SimpleNamespace(
        settings=settings, config=config, publisher=publisher, until=until, value=value, triton=triton, hf=hugging_face
    )
    publisher.stop()


def add_networks(daemon, registry) -> None:
    """Versions 1 and 2, which a child can load."""
    weights = daemon.config.with_name("network.safetensors")
    for seed in (1, 2):
        torch.manual_seed(seed)
        save_weights(build_network(daemon.settings.network.architecture(), len(daemon.settings.classes)), weights)
        registry.add(weights, make_manifest(daemon.settings, origin="pretrain"), by="test")


def state(daemon, name):
    return next(item for item in daemon.publisher.states() if item.name == name)


@pytest.mark.nightly
def test_promotion_and_rollback_reach_a_triton_repository(daemon, registry):
    """With real exports of ONNX, which are slow."""
    add_networks(daemon, registry)
    assert daemon.publisher.step() > 0 and daemon.publisher.states()[0].state == "waiting", "nothing serves yet"
    registry.promote(1, by="pretrain", reason="first")
    daemon.until(lambda: state(daemon, "triton").state == "current")
    assert daemon.triton.current() == 1
    assert daemon.triton.holds(1, registry.manifest(1).files["model.safetensors"].sha256)
    assert (daemon.triton.place(1) / "model.onnx").stat().st_size > 1000
    registry.promote(2, by="gate", reason="better")
    daemon.until(lambda: daemon.triton.current() == 2)
    assert daemon.triton.place(1).is_dir(), "kept for a rollback"
    moves.roll_back(registry, to=None, by="operator", reason="worse")
    daemon.until(lambda: daemon.triton.current() == 1)
    daemon.until(lambda: state(daemon, "triton").state == "current")
    assert daemon.triton.place(2).is_dir(), "neither serving nor previous, but a server may be loading it"
    assert daemon.value("mfmd_publish_total", mirror="triton", result="ok") == 3
    assert daemon.value("mfmd_publish_total", mirror="triton", result="failed") == 0
    assert daemon.value("mfmd_publish_version", mirror="triton") == 1


def test_nothing_is_published_while_a_link_leads_into_the_state(daemon, add_version, tmp_path):
    add_version()
    daemon.settings.state.mkdir(exist_ok=True)
    (tmp_path / "hf").symlink_to(daemon.settings.state)
    before = sorted(daemon.settings.state.iterdir())
    daemon.until(lambda: state(daemon, "huggingface").state == "failed")
    assert "publish.huggingface" in state(daemon, "huggingface").reason
    assert "lies in" in state(daemon, "triton").reason or "is the same folder" in state(daemon, "triton").reason
    assert not (tmp_path / "triton").exists() and sorted(daemon.settings.state.iterdir()) == before


@pytest.mark.nightly
def test_an_export_that_is_refused_says_why_and_holds_nothing_up(daemon, registry):
    """The network has no Hugging Face form; the child that says so is real."""
    add_networks(daemon, registry)
    registry.promote(1, by="pretrain", reason="first")
    daemon.until(lambda: state(daemon, "huggingface").failures >= 1)
    assert state(daemon, "triton").state == "exporting"
    failed = state(daemon, "huggingface")
    assert "error[export_refused]" in failed.reason and failed.version is None
    assert daemon.value("mfmd_publish_total", mirror="huggingface", result="failed") >= 1
    status = collect_status(daemon.settings).model_copy(update={"mirrors": [failed]})
    (message,) = [text for text in operator_messages(status, daemon.settings) if text.startswith("publish.huggingface")]
    assert "has no version yet: the export ended with status 1: error[export_refused]" in message
    assert "next attempt in" in message
    assert registry.serving().version == 1


def test_a_lost_write_stops_the_mirror_and_only_the_mirror(daemon, registry, add_version, monkeypatch):
    add_version()

    def lost(path: Path, **_: object) -> None:
        raise DurabilityLost(f"{path}: fsync failed")

    monkeypatch.setattr(durable, "make_directory", lost)
    daemon.publisher.step()
    stopped = daemon.publisher.states()
    assert [item.state for item in stopped] == ["stopped", "stopped"]
    assert "fsync failed" in stopped[0].reason and stopped[0].next_attempt is None
    monkeypatch.undo()
    daemon.publisher.step()
    assert not daemon.triton.folder.exists(), "never retried"


@pytest.mark.parametrize("daemon", [AT_ONCE], indirect=True)
def test_a_place_that_cannot_be_written_is_tried_again(daemon, registry, add_version):
    add_version()
    daemon.triton.folder.parent.write_text("a file where the repository should be")
    daemon.until(lambda: state(daemon, "triton").failures >= 2)
    assert state(daemon, "triton").state == "failed" and state(daemon, "triton").next_attempt is not None
    daemon.triton.folder.parent.unlink()
    daemon.until(lambda: state(daemon, "triton").state == "exporting")


def test_a_folder_that_cannot_be_looked_at_waits_for_its_next_attempt_too(daemon, registry, add_version):
    add_version()
    daemon.triton.folder.parent.write_text("somebody's file")
    for _ in range(5):
        daemon.publisher.step()
    failed = state(daemon, "triton")
    assert (failed.state, failed.failures) == ("failed", 1) and "Not a directory" in failed.reason
    assert daemon.value("mfmd_publish_total", mirror="triton", result="failed") == 1


def test_stopping_ends_the_export(daemon, registry, add_version, layout):
    add_version()
    daemon.publisher.step()
    assert [item.state for item in daemon.publisher.states()] == ["exporting", "exporting"]
    groups = [target.export._group for target in daemon.publisher._targets]
    daemon.publisher.stop()
    assert all(group.poll() is not None for group in groups)
    assert not any(children_of(layout))
    assert what_a_reader_finds(daemon.triton) is None


def test_the_copy_that_readers_just_left_stays_and_goes_with_the_next_change(
    make_settings, registry, layout, add_version, tmp_path
):
    settings = make_settings(publish={"huggingface": tmp_path / "hf"})
    publisher = Publisher(settings, tmp_path / "mfmd.yaml", registry, Metrics(settings).publish)
    mirror = publisher._targets[0]._mirror

    def copies_after(change) -> list[int]:
        change()
        publisher.step()
        assert mirror.leads_to(registry.serving().version) and publisher.states()[0].state == "current"
        return sorted(int(place.name) for place in mirror.folder.iterdir() if place.name != "current")

    def new_version() -> None:
        version = add_version()
        export(mirror, version, registry.manifest(version).files["model.safetensors"].sha256)

    assert [copies_after(new_version) for _ in range(3)] == [[1], [1, 2], [2, 3]]
    assert copies_after(lambda: moves.roll_back(registry, to=2, by="operator", reason="")) == [2, 3]
    assert copies_after(new_version) == [2, 4]


def test_without_mirrors_there_is_nothing_to_do(make_settings, registry, layout, tmp_path):
    settings = make_settings()
    publisher = Publisher(settings, tmp_path / "mfmd.yaml", registry, Metrics(settings).publish)
    assert publisher.step() > 0 and publisher.states() == []
