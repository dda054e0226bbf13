"""Versions that share a base: a swap copies what differs, both residents hold it once, and no answer changes."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from adapters.inference import forward as served_forward
from daemon.serving.plane import InferencePlane
from storage.errors import CorruptCheckpoint
from tests.adapters.frozen_network import NAME, add_version, built
from tests.daemon.serving.serving_world import World, served_form, settings_for

MIXER = "encoder.mixer.weight"
IMAGES = torch.linspace(-1, 1, 3 * 64 * 96).view(1, 3, 64, 96)


@pytest.fixture
def add(world: World) -> Callable[[int, int], int]:
    """Add and promote a version with the backbone and the trained tensors of two seeds."""
    settings = settings_for(world.layout.root, network={"name": NAME})

    def add(backbone: int, trained: int) -> int:
        network = built(settings, backbone, trained)
        version = add_version(world.registry, settings, world.root / "saved", network)
        world.networks[version] = served_form(network)
        world.registry.promote(version, by="test", reason="")
        return version

    return add


def look(plane: InferencePlane, later: float = 0.0) -> int | None:
    plane.follower.poll(time.monotonic() + later)
    return plane.slots.live.version if plane.slots.live else None


def residents(plane: InferencePlane) -> list[served_forward.ServedForward]:
    return [item.forward for item in (plane.slots.live, plane.slots.idle) if item is not None]


def answers_right(world: World, plane: InferencePlane) -> None:
    """Every resident version gives the logits of its own weights, to the last bit."""
    with torch.inference_mode():
        for item in (plane.slots.live, plane.slots.idle):
            if item is not None:
                assert torch.equal(item.forward(IMAGES), world.networks[item.version](IMAGES)), item.version


def test_residents_of_one_base_hold_it_once_and_those_of_another_never_touch_it(
    world: World, plane: InferencePlane, add: Callable[[int, int], int]
) -> None:
    for backbone, trained, together in (
        (0, 1, True), (0, 2, True), (5, 3, False), (5, 4, True), (5, 5, True), (0, 6, False), (5, 7, False),
    ):  # fmt: skip
        version = add(backbone, trained)
        assert look(plane) == version
        places = {forward.network.get_parameter(MIXER).data_ptr() for forward in residents(plane)}
        assert len(places) == (1 if together else 2), version
        answers_right(world, plane)


def test_a_swap_copies_only_what_is_not_in_the_base(
    world: World, plane: InferencePlane, add: Callable[[int, int], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    held, real = list[set[str]](), served_forward.copy_weights

    def watched(network: torch.nn.Module, path: Path, base: Path | None, **named: object) -> None:
        held.append(set(named["held"]))  # type: ignore[call-overload]
        real(network, path, base, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(served_forward, "copy_weights", watched)
    for trained in range(4):
        look(plane)
        add(0, trained)
    look(plane)
    stem = {"encoder.stem.0.weight", "encoder.stem.0.bias"}
    assert [bool(names) for names in held] == [False, True, True, True]
    assert MIXER in held[-1] and not stem & held[-1], "a folded convolution has the version's statistics in it"


def test_a_damaged_base_keeps_the_old_version_serving(
    world: World, plane: InferencePlane, add: Callable[[int, int], int]
) -> None:
    first = add(0, 1)
    look(plane)
    add(5, 2)
    path = world.registry.weight_files(2)[1]
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert look(plane) == first
    failure = plane.follower.failure
    assert failure is not None and (failure.version, failure.code) == (2, CorruptCheckpoint.code)
    assert f"{path.name}: content has SHA-256" in failure.reason
    answers_right(world, plane)
    path.write_bytes(whole)
    assert look(plane, later=100) == 2
    answers_right(world, plane)


def test_shared_memory_never_gets_another_base(
    world: World, plane: InferencePlane, add: Callable[[int, int], int]
) -> None:
    for backbone, trained in ((0, 1), (0, 2), (5, 3)):
        add(backbone, trained)
        if backbone == 0:
            look(plane)
    live = plane.slots.live
    assert live is not None
    with pytest.raises(RuntimeError, match="shares the memory of"):
        live.forward.load(*world.registry.weight_files(3))
    answers_right(world, plane)
