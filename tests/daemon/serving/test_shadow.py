"""A candidate in the live version's shadow: it answers nobody, costs no request, and its agreement is recorded."""

from pathlib import Path

import numpy as np
import pytest

from adapters.inference import segment_image
from daemon.serving import shadow
from storage.errors import DurabilityLost, StorageError
from storage.shadow_record import ShadowRecord, read_shadow, write_shadow
from tests.daemon.serving.serving_world import HEIGHT, WIDTH, Served, World, image_bytes, picture, running, wait_until


def shadow_runs(served: Served, version: int) -> None:
    wait_until(lambda: served.metric("mfmd_shadow_version") == version, f"version {version} runs in the shadow")


def compared(served: Served, images: int) -> None:
    wait_until(lambda: served.metric("mfmd_shadow_images_total", result="compared") >= images, f"{images} compared")


def test_agreement_is_measured_and_recorded_and_the_candidate_answers_nobody(world: World) -> None:
    world.add(1)
    candidate = world.add(2, promote=False)
    world.registry.set_shadow(candidate, by="test", reason="")
    with running(world.settings(shadow_fraction=1.0)) as served:
        served.wait_for(1)
        shadow_runs(served, candidate)
        for done in range(3):
            answer = served.segment(image_bytes(seed=done))
            assert answer.headers["X-Checkpoint-Version"] == "1"
            compared(served, done + 1)
        assert served.client.get("/v1/serving").json()["resident"] == [1]
        agreement = served.metric("mfmd_shadow_agreement")
    own, served_labels = (
        np.stack([segment_image(world.networks[version], picture(seed=seed), (HEIGHT, WIDTH)) for seed in range(3)])
        for version in (candidate, 1)
    )
    record = read_shadow(world.layout.shadow_record(candidate))
    assert record is not None
    assert (record.candidate, record.serving, record.images, record.pixels) == (candidate, 1, 3, 3 * HEIGHT * WIDTH)
    assert record.same == int((own == served_labels).sum()) and record.agreement == agreement
    assert 0 < agreement < 1
    with running(world.settings(shadow_fraction=1.0)) as served:
        shadow_runs(served, candidate)
        served.segment(image_bytes())
        compared(served, 1)
    record = read_shadow(world.layout.shadow_record(candidate))
    assert record is not None and record.images == 4, "counts go on after a restart"


def test_only_the_fraction_runs_twice(world: World) -> None:
    world.add(1)
    world.registry.set_shadow(world.add(2, promote=False), by="test", reason="")
    with running(world.settings(shadow_fraction=0.25)) as served:
        shadow_runs(served, 2)
        for _ in range(8):
            assert served.segment(image_bytes()).status_code == 200
        compared(served, 2)
    record = read_shadow(world.layout.shadow_record(2))
    assert record is not None and record.images == 2


def test_promoting_the_shadow_is_a_flip_and_ending_it_frees_the_place(world: World) -> None:
    world.add(1)
    second, third = world.add(2, promote=False), world.add(3, promote=False)
    world.registry.set_shadow(second, by="test", reason="")
    with running(world.settings(shadow_fraction=0.5)) as served:
        shadow_runs(served, second)
        world.registry.promote(second, by="gate", reason="")
        served.wait_for(second)
        assert served.metric("mfmd_swap_seconds_count", phase="load") == 2, "no second load of the candidate"
        shadow_runs(served, 0)
        assert served.client.get("/v1/serving").json()["resident"] == [second, 1]
        world.registry.set_shadow(third, by="test", reason="")
        shadow_runs(served, third)
        world.registry.set_shadow(None, by="test", reason="")
        shadow_runs(served, 0)
        assert served.plane.slots.idle is None
        assert served.segment(image_bytes()).headers["X-Checkpoint-Version"] == str(second)


def test_a_corrupt_or_different_candidate_costs_nothing(world: World) -> None:
    world.add(1)
    corrupt = world.add(2, promote=False)
    world.registry.set_shadow(corrupt, by="test", reason="")
    world.corrupt(corrupt)
    with running(world.settings(shadow_fraction=1.0)) as served:
        served.wait_for(1)
        wait_until(lambda: served.metric("mfmd_shadow_failed_total") == 1, "the corrupt candidate is refused")
        assert served.segment(image_bytes()).status_code == 200
        good = world.add(3, promote=False)
        world.registry.set_shadow(good, by="test", reason="")
        shadow_runs(served, good)
        assert served.metric("mfmd_shadow_failed_total") == 1, "tried once, not at every look"
        assert served.metric("mfmd_swap_total", result="failed") == 0


def test_a_shadow_is_kept_by_retention_and_must_be_whole(world: World) -> None:
    versions = [world.add(seed, promote=seed in (1, 4)) for seed in range(1, 5)]
    world.registry.set_shadow(versions[1], by="test", reason="")
    assert world.registry.prune(0) == [versions[2]]
    world.corrupt(versions[1])
    with pytest.raises(StorageError):
        world.registry.set_shadow(versions[1], by="test", reason="")


def test_an_unreadable_record_is_named(world: World) -> None:
    path = world.layout.shadow_record(1)
    assert read_shadow(path) is None
    record = ShadowRecord(candidate=2, serving=1, since=1.0, updated=1.0)
    write_shadow(path, record)
    assert read_shadow(path) == record and record.agreement == 0.0
    path.write_text("{")
    with pytest.raises(StorageError, match=r"000001\.json"):
        read_shadow(path)


def test_an_fsync_that_failed_ends_the_record_and_nothing_else(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.add(1)
    first, second = world.add(2, promote=False), world.add(3, promote=False)
    world.registry.set_shadow(first, by="test", reason="")
    tried: list[Path] = []

    def lost(path: Path, record: ShadowRecord) -> None:
        tried.append(path)
        raise DurabilityLost(f"{path}: fsync failed")

    with running(world.settings(shadow_fraction=1.0)) as served:
        shadow_runs(served, first)
        monkeypatch.setattr(shadow, "WRITE_SECONDS", float("inf"))  # what is counted is written when the pair changes
        served.segment(image_bytes())
        compared(served, 1)
        monkeypatch.setattr(shadow, "write_shadow", lost)
        world.registry.set_shadow(second, by="test", reason="")
        shadow_runs(served, second)
        served.segment(image_bytes())
        wait_until(lambda: not served.plane.shadow._thread.is_alive(), "the shadow's thread ends")
        assert served.segment(image_bytes()).status_code == 200
    assert len(tried) == 1, "an fsync is never tried again"
