"""Loads that fail half-way: what the status says when a version vanishes, and which networks stay in memory."""

import gc
import importlib
import logging
import shutil
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from adapters.networks.network import SegmentationNetwork
from daemon.serving.plane import InferencePlane
from daemon.serving.versions import swap
from storage.registry.manifest import Manifest
from tests.daemon.serving.serving_world import World

ARCHITECTURES = [
    {"name": "deeplabv2", "encoder": "resnet_tiny"},
    {"name": "deeplabv3plus", "encoder": "resnet_tiny"},
    {"name": "daformer", "encoder": "mit_tiny"},
]


def look(plane: InferencePlane, later: float = 0.0) -> int:
    """One look at the ref, `later` seconds from now; returns the version that serves then."""
    plane.follower.poll(time.monotonic() + later)
    assert plane.slots.live is not None
    return plane.slots.live.version


def remove(folder: Path) -> None:
    """The whole version."""
    shutil.rmtree(folder)


def remove_weights(folder: Path) -> None:
    """One file of it."""
    (folder / "model.safetensors").unlink()


def at_call(monkeypatch: pytest.MonkeyPatch, target: str, number: int, work: Callable[[], None]) -> None:
    """Let `work` happen right before the given call, from 1, of the function that `target` names; the call is made."""
    module, name = target.rsplit(":", 1)
    real, calls = getattr(importlib.import_module(module), name), []

    def watched(*args: Any, **named: Any) -> Any:
        calls.append(name)
        if len(calls) == number:
            work()
        return real(*args, **named)

    monkeypatch.setattr(importlib.import_module(module), name, watched)


@pytest.mark.parametrize(
    ("moment", "number", "damage", "code"),
    [
        ("storage.registry.versions:read_manifest", 1, remove, "version_unknown"),
        ("storage.registry.versions:read_manifest", 2, remove, "version_unknown"),
        ("storage.registry.versions:digest_of", 1, remove, "version_unknown"),
        ("storage.registry.versions:digest_of", 1, remove_weights, "checkpoint_corrupt"),
        ("daemon.serving.versions.swap:network_of", 1, remove, "version_unknown"),
        ("adapters.inference.forward:copy_weights", 1, remove, "checkpoint_corrupt"),
    ],
)
def test_a_version_that_vanishes_while_it_is_read_has_a_stable_code_and_a_remedy(
    world: World,
    plane: InferencePlane,
    monkeypatch: pytest.MonkeyPatch,
    moment: str,
    number: int,
    damage: Callable[[Path], None],
    code: str,
) -> None:
    first = world.add(1)
    assert look(plane) == first
    second = world.add(2)
    folder = world.registry.weights_path(second).parent
    shutil.copytree(folder, world.root / "kept")
    with monkeypatch.context() as watched:
        at_call(watched, moment, number, lambda: damage(folder))
        assert look(plane) == first
    failure = plane.follower.failure
    assert failure is not None and (failure.version, failure.code) == (second, code)
    assert str(folder) in failure.reason or f"no version {second} in " in failure.reason
    assert "roll" in failure.reason or f"versions: {first}" in failure.reason, "what to do"
    shutil.copytree(world.root / "kept", folder, dirs_exist_ok=True)
    assert look(plane, later=10.0) == second, "brought back, it serves at the next attempt"


def test_an_error_of_the_system_and_a_bug_have_stable_codes_too(
    world: World, plane: InferencePlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = world.add(1), world.add(2, promote=False)
    assert look(plane) == first
    world.point_at(second)
    errors = ((PermissionError("not yours"), "system"), (ZeroDivisionError("a bug"), "unexpected"))
    for later, (error, code) in zip((0.0, 10.0), errors, strict=True):

        def fail(error: Exception = error) -> None:
            raise error

        with monkeypatch.context() as watched:
            at_call(watched, "storage.registry.versions:digest_of", 1, fail)
            assert look(plane, later) == first
        failure = plane.follower.failure
        assert failure is not None and failure.code == code and str(error) in failure.reason
    assert "ZeroDivisionError" in failure.reason


def not_finite(world: World, seed: int, architecture: dict[str, str]) -> int:
    """A version that is verified, and whose weights are refused while they are copied."""
    version, path = world.add(seed, promote=False, **architecture), world.root / "changed.safetensors"
    tensors = load_file(world.registry.weights_path(version))
    tensors[next(name for name, value in tensors.items() if value.is_floating_point())].fill_(float("nan"))
    save_file(tensors, path)
    return world.registry.add(path, world.registry.manifest(version), by="test").version


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """How many of the networks that planes have made are in memory."""
    made: weakref.WeakSet[SegmentationNetwork] = weakref.WeakSet()
    real = swap.network_of

    def noted(manifest: Manifest) -> SegmentationNetwork:
        network = real(manifest)
        made.add(network)
        return network

    def count() -> int:
        gc.collect()
        return len(made)

    monkeypatch.setattr(swap, "network_of", noted)
    # pytest keeps what is logged: errors with their frames, and so what those held.
    monkeypatch.setattr(logging.getLogger("daemon.serving.versions.follower"), "disabled", True)
    return count


@pytest.mark.nightly
def test_failed_loads_leave_one_idle_network_at_most(
    world: World, plane: InferencePlane, held: Callable[[], int]
) -> None:
    first = world.add(1)
    bad = [not_finite(world, 5 + number, kind) for number, kind in enumerate(ARCHITECTURES)]
    good = [world.add(2 + number, promote=False, **kind) for number, kind in enumerate(ARCHITECTURES)]
    assert look(plane) == first and held() == 1
    for version in bad:
        world.point_at(version)
        assert look(plane) == first and held() == 2
        assert plane.follower.failure is not None and "non-finite" in plane.follower.failure.reason
    for shadow, version in zip(good, bad, strict=True):  # failed loads between shadows that begin and end
        plane.swapper.shadow(shadow)
        assert held() == 2
        plane.swapper.end_shadow()
        assert held() <= 2
        world.point_at(version)
        assert look(plane) == first and held() == 2
