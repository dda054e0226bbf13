"""A candidate in the live version's shadow: it answers nobody, costs no request, and its agreement is recorded."""

import re
import threading
from typing import Any

import numpy as np
import pytest
from structlog.testing import CapturingLogger

from adapters.inference.segment import segment_image
from daemon.serving import shadow
from daemon.serving.shadow import plane_name
from storage.errors import DurabilityLost, StorageError
from storage.media.images import Fit
from storage.registry.shadow_record import ShadowRecord, ShadowRecords
from tests.daemon.serving.serving_world import (
    HEIGHT,
    WIDTH,
    Served,
    World,
    image_bytes,
    picture,
    running,
    tiny_network,
    wait_until,
)


def shadow_runs(served: Served, version: int) -> None:
    wait_until(lambda: served.metric("mfmd_shadow_version") == version, f"version {version} runs in the shadow")


def compared(served: Served, images: int) -> None:
    wait_until(lambda: served.metric("mfmd_shadow_images_total", result="compared") >= images, f"{images} compared")


def tried(served: Served) -> tuple[float, float]:
    """Images compared, and images on which the candidate failed."""
    compared, failed = (served.metric("mfmd_shadow_images_total", result=name) for name in ("compared", "failed"))
    return compared, failed


def recorded(world: World, candidate: int) -> ShadowRecord | None:
    """What all planes together recorded beside version 1."""
    return ShadowRecords(world.layout.shadow).total(candidate, 1)


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
    record = recorded(world, candidate)
    assert record is not None
    assert (record.candidate, record.serving, record.images, record.pixels) == (candidate, 1, 3, 3 * HEIGHT * WIDTH)
    assert record.same == int((own == served_labels).sum()) and record.agreement == agreement
    assert 0 < agreement < 1
    with running(world.settings(shadow_fraction=1.0)) as served:
        shadow_runs(served, candidate)
        served.segment(image_bytes())
        compared(served, 1)
    record = recorded(world, candidate)
    assert record is not None and record.images == 4, "counts go on after a restart"


def test_only_the_fraction_runs_twice(world: World) -> None:
    world.add(1)
    world.registry.set_shadow(world.add(2, promote=False), by="test", reason="")
    with running(world.settings(shadow_fraction=0.25)) as served:
        shadow_runs(served, 2)
        for _ in range(8):
            assert served.segment(image_bytes()).status_code == 200
        compared(served, 2)
    record = recorded(world, 2)
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


def test_a_promotion_seen_after_the_shadow_is_gone_is_still_a_flip(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The plane looked at `serving` just before it moved, and at the shadow just after that was ended."""
    world.add(1)
    candidate = world.add(2, promote=False)
    world.registry.set_shadow(candidate, by="test", reason="")
    with running(world.settings(shadow_fraction=0.5)) as served:
        shadow_runs(served, candidate)
        poll, moved = served.plane.follower.poll_shadow, threading.Event()

        def promoted_in_between() -> None:
            if not moved.is_set():
                world.registry.promote(candidate, by="gate", reason="")
                world.registry.set_shadow(None, by="gate", reason="")
                moved.set()
            poll()

        monkeypatch.setattr(served.plane.follower, "poll_shadow", promoted_in_between)
        served.wait_for(candidate)
        assert served.metric("mfmd_swap_seconds_count", phase="load") == 2, "no second load of the candidate"


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


def test_a_candidate_that_sees_images_otherwise_is_not_compared(world: World) -> None:
    world.add(1)
    squashed = world.add_network(tiny_network(2), promote=False, fit=Fit("squash"))
    world.registry.set_shadow(squashed, by="test", reason="")
    with running(world.settings(shadow_fraction=1.0)) as served:
        served.wait_for(1)
        wait_until(lambda: served.metric("mfmd_shadow_failed_total") == 1, "the other fit is refused")
        assert served.plane.slots.shadow is None


def test_images_on_which_the_candidate_fails_are_recorded_and_cost_no_answer(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.add(1)
    candidate = world.add(2, promote=False)
    world.registry.set_shadow(candidate, by="test", reason="")
    real, wide = shadow.segment_fitted, (HEIGHT, WIDTH)

    def fails_on_tall_images(forward: Any, frames: Any, sizes: list[tuple[int, int]]) -> Any:
        if sizes != [wide]:
            raise RuntimeError("out of memory")
        return real(forward, frames, sizes)

    log = CapturingLogger()
    monkeypatch.setattr(shadow, "log", log)
    monkeypatch.setattr(shadow, "segment_fitted", fails_on_tall_images)
    with running(world.settings(shadow_fraction=1.0)) as served:
        shadow_runs(served, candidate)
        for done, tall in enumerate((True, False, True)):
            image = image_bytes(height=WIDTH, width=HEIGHT) if tall else image_bytes()
            assert served.segment(image).headers["X-Checkpoint-Version"] == "1"
            wait_until(lambda done=done: sum(tried(served)) == done + 1, "it was tried")
        assert tried(served) == (1, 2)
    record = recorded(world, candidate)
    assert record is not None
    assert (record.images, record.failed, record.tried, record.pixels) == (1, 2, 3, HEIGHT * WIDTH)
    tracebacks = [call.kwargs["exc_info"] for call in log.calls if call.args == ("shadow_run_failed",)]
    assert tracebacks == [True, False], "the second error is one line"


def test_a_shadow_is_kept_by_retention_and_must_be_whole(world: World) -> None:
    versions = [world.add(seed, promote=seed in (1, 4)) for seed in range(1, 5)]
    world.registry.set_shadow(versions[1], by="test", reason="")
    assert world.registry.prune(0) == [versions[2]]
    world.corrupt(versions[1])
    with pytest.raises(StorageError):
        world.registry.set_shadow(versions[1], by="test", reason="")


def test_planes_on_one_state_directory_keep_their_own_records_and_readers_sum_them_up(world: World) -> None:
    world.add(1)
    candidate = world.add(2, promote=False)
    world.registry.set_shadow(candidate, by="test", reason="")
    settings = world.settings(shadow_fraction=1.0)
    for start in range(2):
        with running(settings, name="one") as one, running(settings, name="two") as two:
            for served, images in ((one, 1), (two, 2)):
                shadow_runs(served, candidate)
                for done in range(images):
                    served.segment(image_bytes(seed=done))
                    compared(served, done + 1)
        records = ShadowRecords(world.layout.shadow)
        counts = [record.images for name in ("one", "two") if (record := records.read(candidate, name))]
        assert counts == [start + 1, 2 * (start + 1)], "each goes on with its own after a restart"
        total = recorded(world, candidate)
        assert total is not None and (total.images, total.pixels) == (3 * (start + 1), 3 * (start + 1) * HEIGHT * WIDTH)


def test_a_plane_is_called_by_its_machine_and_address(world: World) -> None:
    assert plane_name("127.0.0.1", 8009) == plane_name("127.0.0.1", 8009)
    assert len({plane_name("127.0.0.1", 8009), plane_name("127.0.0.1", 8010), plane_name("::1", 8009)}) == 3
    records = ShadowRecords(world.layout.shadow)
    names = ["../../secret", "::1", "%3A%3A1", "a/b", "a_b"]
    paths = {records.path(2, name) for name in names}
    assert len(paths) == len(names)
    assert all(path.parent == world.layout.shadow / "000002" and re.fullmatch(r"[\w%.-]+", path.name) for path in paths)


def test_sums_count_what_can_be_read_and_is_of_the_pair_asked_for(world: World) -> None:
    records = ShadowRecords(world.layout.shadow)
    assert records.total(2, 1) is None
    one = ShadowRecord(candidate=2, serving=1, images=3, pixels=30, same=20, failed=2, since=5.0, updated=6.0)
    records.write("a", one)
    records.write("b", one.model_copy(update={"same": 10, "since": 1.0, "updated": 9.0}))
    records.write("other", one.model_copy(update={"serving": 7}))
    records.write("damaged", one)
    records.path(2, "damaged").write_text("{")
    records.path(3, "x").parent.mkdir()
    records.path(3, "x").write_text(one.model_dump_json())  # copied: it is not of version 3
    total = records.total(2, 1)
    assert total == ShadowRecord(candidate=2, serving=1, images=6, pixels=60, same=30, failed=4, since=1.0, updated=9.0)
    assert total is not None and total.agreement == 0.5
    assert [record.serving for record in records.of(2)] == [1, 7]
    assert records.of(3) == []
    with pytest.raises(StorageError, match=r"damaged\.json"):
        records.read(2, "damaged")
    records.prune([3])
    assert [path.name for path in world.layout.shadow.iterdir()] == ["000003"]


def test_an_fsync_that_failed_ends_the_record_and_nothing_else(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.add(1)
    first, second = world.add(2, promote=False), world.add(3, promote=False)
    world.registry.set_shadow(first, by="test", reason="")
    tried: list[ShadowRecord] = []

    def lost(records: ShadowRecords, plane: str, record: ShadowRecord) -> None:
        tried.append(record)
        raise DurabilityLost(f"{records.path(record.candidate, plane)}: fsync failed")

    with running(world.settings(shadow_fraction=1.0)) as served:
        shadow_runs(served, first)
        monkeypatch.setattr(shadow, "WRITE_SECONDS", float("inf"))  # what is counted is written when the pair changes
        served.segment(image_bytes())
        compared(served, 1)
        monkeypatch.setattr(ShadowRecords, "write", lost)
        world.registry.set_shadow(second, by="test", reason="")
        shadow_runs(served, second)
        served.segment(image_bytes())
        wait_until(lambda: not served.plane.shadow.is_alive(), "the shadow's thread ends")
        assert served.segment(image_bytes()).status_code == 200
    assert len(tried) == 1, "an fsync is never tried again"


def test_a_record_that_cannot_be_written_is_said_once_and_written_when_it_can(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = CapturingLogger()
    monkeypatch.setattr(shadow, "log", log)
    monkeypatch.setattr(shadow, "WRITE_SECONDS", 0.0)
    world.add(1)
    candidate = world.add(2, promote=False)
    world.registry.set_shadow(candidate, by="test", reason="")
    world.layout.shadow.write_text("no folder")
    with running(world.settings(shadow_fraction=1.0)) as served:
        shadow_runs(served, candidate)
        for seed in range(3):
            served.segment(image_bytes(seed=seed))
            compared(served, seed + 1)
        world.layout.shadow.unlink()
        wait_until(lambda: recorded(world, candidate) is not None, "the record is written without another image")
    assert [call.args[0] for call in log.calls].count("shadow_record_not_written") == 1
