"""A mirror of versions that share a base: copies hold everything, and without the base the old copy stays."""

import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

from configs.settings import Settings
from daemon.metrics import Metrics
from daemon.publishing.publisher import Publisher
from daemon.runtime.backoff import Backoff
from storage.registry.mirrors import TritonMirror
from storage.registry.registry import CheckpointRegistry
from tests.adapters.frozen_network import NAME, add_version, built

PATIENCE = 500.0
"""Longest wait for real exports (seconds): several times what a busy machine needs."""


def in_onnx(folder: Path, images: torch.Tensor) -> torch.Tensor:
    import onnxruntime

    session = onnxruntime.InferenceSession(folder / "model.onnx")
    return torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])


@pytest.mark.nightly
@pytest.mark.timeout(600)
def test_copies_are_whole_and_wait_for_a_base_that_is_damaged_or_missing(
    make_settings: Callable[..., Settings],
    registry: CheckpointRegistry,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[3]))  # children import the network of the tests
    settings = make_settings(network={"name": NAME}, publish={"triton": tmp_path / "triton"})
    config, mirror = tmp_path / "mfmd.yaml", TritonMirror(tmp_path / "triton", max_batch=4)
    config.write_text(yaml.safe_dump(settings.model_dump(mode="json", exclude_defaults=True)))
    networks = [built(settings, trained=number) for number in (1, 2)]
    for network in networks:
        add_version(registry, settings, tmp_path / "saved", network)
    publisher = Publisher(settings, config, registry, Metrics(settings).publish, Backoff(base=0.05, cap=0.05))

    def until(condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < deadline, publisher.states()
            publisher.step()
            time.sleep(0.02)

    def fails_by(reason: str) -> None:
        until(lambda: reason in publisher.states()[0].reason)
        assert "error[checkpoint_corrupt]" in publisher.states()[0].reason and mirror.current() == 1

    try:
        registry.promote(1, by="pretrain", reason="first")
        until(lambda: publisher.states()[0].state == "current")
        registry.promote(2, by="gate", reason="better")
        base = registry.weight_files(2)[1]
        whole = base.read_bytes()
        base.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        fails_by(f"{base}: content has SHA-256")
        base.unlink()
        fails_by(f"{base}: missing; versions with this base cannot serve: restore it from a backup")
        base.write_bytes(whole)
        until(lambda: mirror.current() == 2)
    finally:
        publisher.stop()
    shutil.rmtree(registry.root)
    images = torch.randn(2, 3, settings.buffer.height, settings.buffer.width)
    for version, trained in enumerate(networks, 1):
        with torch.no_grad():
            expected = trained(images)
        torch.testing.assert_close(in_onnx(mirror.place(version), images), expected, atol=1e-4, rtol=1e-3)
