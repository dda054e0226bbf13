"""Swaps without HTTP: what may serve, what happens to what may not, and what a rollback reads."""

import time
from collections.abc import Callable

import pytest
import torch
from safetensors.torch import load_file, save_file

from adapters.checkpoints.checkpoint import make_manifest
from daemon.serving.batcher import Fitted
from daemon.serving.plane import InferencePlane
from storage.durable import write_record
from storage.media.images import fit_frame
from storage.registry.manifest import Ref
from tests.daemon.serving.serving_world import World, picture, settings_for


def look(plane: InferencePlane, later: float = 0.0) -> int | None:
    """One look at the ref, `later` seconds from now; returns the version that serves then."""
    plane.follower.poll(time.monotonic() + later)
    return plane.slots.live.version if plane.slots.live else None


def point_at(world: World, version: int) -> None:
    """Move the serving ref without the registry's checks: disks also rot after a promotion."""
    (world.registry.root / "refs").mkdir(parents=True, exist_ok=True)
    write_record(
        world.registry.root / "refs" / "serving", Ref(version=version, since=time.time(), by="test", reason="")
    )


def count(plane: InferencePlane, result: str) -> float:
    return plane.metrics.registry.get_sample_value("mfmd_swap_total", {"result": result}) or 0.0


def test_waits_for_the_first_version(world: World, plane: InferencePlane) -> None:
    assert look(plane) is None and not plane.ready and plane.follower.failure is None
    version = world.add(1)
    assert look(plane) == version and plane.ready
    assert plane.metrics.registry.get_sample_value("mfmd_serving_version") == version


def test_serves_the_weights_of_the_registry_and_reuses_its_two_networks(world: World, plane: InferencePlane) -> None:
    seen = set()
    for seed in range(1, 6):
        version = world.add(seed)
        assert look(plane) == version
        live = plane.slots.live
        assert live is not None
        seen.add(id(live.forward.network))
        expected = world.networks[version].network.state_dict()
        assert all(torch.equal(expected[name], value) for name, value in live.forward.network.state_dict().items())
    assert len(seen) == 2, "a swap to the same architecture must allocate no new network"


def test_another_architecture_is_built_anew(world: World, plane: InferencePlane) -> None:
    first = world.add(1)
    look(plane)
    second = world.add(2, name="deeplabv2", encoder="resnet_tiny")
    assert look(plane) == second
    world.registry.roll_back(to=None, by="test", reason="")
    assert look(plane) == first


def test_a_rollback_to_the_resident_version_reads_no_weights(world: World, plane: InferencePlane) -> None:
    first, second = world.add(1), world.add(2, promote=False)
    look(plane)
    world.registry.promote(second, by="test", reason="")
    assert look(plane) == second
    world.registry.roll_back(to=None, by="test", reason="")
    for version in (first, second):  # whatever tries to read them now fails
        world.registry.weights_path(version).unlink()
        (world.registry.weights_path(version).parent / "manifest.json").unlink()
    assert look(plane) == first
    sample = plane.metrics.registry.get_sample_value
    assert sample("mfmd_serving_rollbacks_total", {"weights": "resident"}) == 1
    assert sample("mfmd_serving_rollbacks_total", {"weights": "disk"}) == 0
    assert sample("mfmd_swap_seconds_count", {"phase": "load"}) == 2, "one load for each version, none for the rollback"


def test_a_rollback_further_back_reads_from_disk(world: World, plane: InferencePlane) -> None:
    versions = []
    for seed in (1, 2, 3):
        versions.append(world.add(seed))
        assert look(plane) == versions[-1]
    world.registry.roll_back(to=versions[0], by="test", reason="")
    assert look(plane) == versions[0]
    assert plane.metrics.registry.get_sample_value("mfmd_serving_rollbacks_total", {"weights": "disk"}) == 1


def truncate(world: World, version: int) -> None:
    path = world.registry.weights_path(version)
    path.write_bytes(path.read_bytes()[:-100])


def remove_weights(world: World, version: int) -> None:
    world.registry.weights_path(version).unlink()


def remove_manifest(world: World, version: int) -> None:
    (world.registry.weights_path(version).parent / "manifest.json").unlink()


def break_manifest(world: World, version: int) -> None:
    (world.registry.weights_path(version).parent / "manifest.json").write_text("{")


@pytest.mark.parametrize("damage", [World.corrupt, truncate, remove_weights, remove_manifest, break_manifest])
def test_a_damaged_version_never_serves(
    world: World, plane: InferencePlane, damage: Callable[[World, int], None]
) -> None:
    first, second = world.add(1), world.add(2)
    third = world.add(3, promote=False)
    point_at(world, first)
    look(plane)
    point_at(world, second)
    look(plane)
    damage(world, third)
    point_at(world, third)
    assert look(plane) == second
    assert count(plane, "failed") == 1
    failure = plane.follower.failure
    assert failure is not None and failure.version == third and failure.code == "checkpoint_corrupt"
    assert f"{third:06d}" in failure.reason, "the reason names the file"
    assert plane.slots.versions == (second, first), "a damaged candidate must not cost the version to roll back to"


def change_tensors(change: Callable[[dict[str, torch.Tensor]], None]) -> Callable[[World], int]:
    """A version whose hash is right but whose tensors went through `change`."""

    def add(world: World) -> int:
        path = world.root / "changed.safetensors"
        version = world.add(9, promote=False)
        tensors = load_file(world.registry.weights_path(version))
        change(tensors)
        save_file(tensors, path)
        return world.registry.add(path, world.registry.manifest(version), by="test").version

    return add


def last_weight(tensors: dict[str, torch.Tensor]) -> str:
    return next(name for name in reversed(tensors) if tensors[name].dim() == 4 and "decoder" in name)


def drop(tensors: dict[str, torch.Tensor]) -> None:
    del tensors[last_weight(tensors)]


def extend(tensors: dict[str, torch.Tensor]) -> None:
    tensors["rebuilder.token"] = torch.zeros(3)


def reshape(tensors: dict[str, torch.Tensor]) -> None:
    name = last_weight(tensors)
    tensors[name] = torch.zeros(*tensors[name].shape, 1)


def poison(tensors: dict[str, torch.Tensor]) -> None:
    tensors[last_weight(tensors)].view(-1)[0] = float("nan")


def overflow(tensors: dict[str, torch.Tensor]) -> None:
    for name in [name for name in tensors if "decoder" in name and tensors[name].is_floating_point()]:
        tensors[name].fill_(3e38)  # finite weights, infinite outputs: only the warm-up can tell


@pytest.mark.parametrize("change", [drop, extend, reshape, poison, overflow])
def test_weights_that_do_not_fit_or_are_not_finite_never_serve(
    world: World, plane: InferencePlane, change: Callable[[dict[str, torch.Tensor]], None]
) -> None:
    first = world.add(1)
    look(plane)
    candidate = change_tensors(change)(world)
    world.registry.promote(candidate, by="gate", reason="")
    assert look(plane) == first
    assert count(plane, "failed") == 1
    failure = plane.follower.failure
    assert failure is not None and (failure.version, failure.code) == (candidate, "checkpoint_corrupt")
    world.registry.roll_back(to=None, by="operator", reason="")
    assert look(plane) == first and count(plane, "failed") == 1
    good = world.add(4)
    assert look(plane) == good, "the network that took the bad weights is usable again"


def test_unknown_version_and_unreadable_ref_leave_the_old_version(world: World, plane: InferencePlane) -> None:
    first = world.add(1)
    look(plane)
    point_at(world, 99)
    assert look(plane) == first
    assert plane.follower.failure is not None and plane.follower.failure.code == "version_unknown"
    (world.registry.root / "refs" / "serving").write_text("{ torn")
    assert look(plane, later=120) == look(plane, later=121) == first, "the second look in a row counts"
    assert plane.follower.failure.version is None and "refs/serving" in plane.follower.failure.reason
    point_at(world, first)
    assert look(plane) == first and count(plane, "failed") == 2


def test_an_architecture_that_cannot_be_built_is_a_failed_swap(world: World, plane: InferencePlane) -> None:
    first = world.add(1)
    look(plane)
    settings = settings_for(world.root, network={"name": "deeplabv2", "encoder": "mit_tiny"})
    manifest = make_manifest(settings, origin="import")
    candidate = world.registry.add(world.registry.weights_path(first), manifest, by="test").version
    world.registry.promote(candidate, by="test", reason="")
    assert look(plane) == first
    assert plane.follower.failure is not None and plane.follower.failure.code == "network_mismatch"


def test_a_failed_version_is_retried_with_growing_pauses_until_the_ref_moves(
    world: World, plane: InferencePlane
) -> None:
    first, second = world.add(1), world.add(2, promote=False)
    look(plane)
    good = world.registry.weights_path(second).read_bytes()
    world.corrupt(second)
    point_at(world, second)
    attempts = []
    for later in (0.0, 0.1, 0.5, 1.5, 2.0, 4.0, 5.0):
        look(plane, later)
        attempts.append(int(count(plane, "failed")))
    assert attempts == [1, 1, 1, 2, 2, 3, 3]
    world.registry.weights_path(second).write_bytes(good)
    assert look(plane, 20.0) == second, "repaired in place: the next retry serves it"
    point_at(world, first)
    assert look(plane) == first


def test_a_start_on_a_corrupt_serving_version_serves_the_one_before(world: World, plane: InferencePlane) -> None:
    first, second = world.add(1), world.add(2)
    world.corrupt(second)
    assert look(plane) == first
    failure = plane.follower.failure
    assert failure is not None and failure.version == second and plane.follower.wanted.version == second
    world.registry.roll_back(to=first, by="operator", reason="")
    assert look(plane) == first


def test_a_start_never_falls_back_to_a_version_that_was_rolled_back_from(world: World, plane: InferencePlane) -> None:
    first, second = world.add(1), world.add(2)
    world.registry.roll_back(to=None, by="operator", reason="worse")
    write_record(world.registry.root / "refs" / "previous", Ref(version=second, since=0.0, by="test", reason=""))
    world.corrupt(first)
    assert look(plane) is None and not plane.ready


def test_every_served_size_is_warmed_up_before_the_flip(world: World, plane: InferencePlane) -> None:
    world.add(1)
    look(plane)
    first = plane.slots.live
    assert first is not None
    world.add(2)
    look(plane)
    with plane.slots.lease() as resident:
        for size in ((64, 96), (64, 64), (24, 96)):
            image = Fitted(fit_frame(picture(*size), *resident.input_size), size)
            plane.batcher.submit(resident, [image])[0].result(20)
    shapes: list[tuple[int, ...]] = []
    first.forward.register_forward_pre_hook(lambda _, inputs: shapes.append(tuple(inputs[0].shape[-2:])))
    third = world.add(3)  # goes into the network that version 1 had
    assert look(plane) == third
    assert shapes[0] == (64, 96), "the full size comes first"
    assert sorted(shapes) == [(32, 96), (64, 64), (64, 96)], "sides below 32 are extended"
