"""What takes the serving ref's place: the version that serves goes on, a counter says so, the next ref counts."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest

from daemon.serving.plane import InferencePlane
from storage.layout import StateLayout
from tests.daemon.serving.serving_world import Served, World, image_bytes, running, wait_until
from tests.storage.registry.no_refs import NO_REFS

pytestmark = pytest.mark.timeout(120)
KINDS: dict[str, Callable[[Path], None]] = {**NO_REFS, "nothing": lambda path: None}


def test_the_old_version_serves_on_until_there_is_a_ref_again(tmp_path: Path) -> None:
    world = World(tmp_path)
    versions = world.add(0), world.add(1, promote=False)
    catalog = StateLayout(world.settings().state).catalog
    catalog.parent.mkdir(parents=True, exist_ok=True)
    catalog.write_bytes(b"not sqlite at all " * 1000)  # no plane needs it
    with running(world.settings()) as served:
        served.wait_for(versions[0])
        for index, (kind, spoil) in enumerate(KINDS.items()):
            serving, other = versions[index % 2], versions[1 - index % 2]
            _spoil(world, served, kind, spoil)
            _assert_goes_on(served, serving, kind)
            _remove(world)
            world.point_at(other)
            served.wait_for(other)


def _spoil(world: World, served: Served, kind: str, spoil: Callable[[Path], None]) -> None:
    """Put something else in the ref's place, and wait until the plane has seen it."""
    follower = served.plane.follower
    _remove(world)
    spoil(world.registry.ref_path("serving"))
    failures = follower.failures
    wait_until(lambda: follower.failures > failures, f"a look at {kind} fails")


def _remove(world: World) -> None:
    path = world.registry.ref_path("serving")
    if path.is_symlink() or path.exists():
        path.rename(path.with_name("away"))
        _clear(path.with_name("away"))


def _clear(path: Path) -> None:
    """Remove what may be a folder with one folder in it."""
    if path.is_symlink() or not path.is_dir():
        path.unlink()
        return
    for inner in path.iterdir():
        inner.rmdir()
    path.rmdir()


def _assert_goes_on(served: Served, version: int, kind: str) -> None:
    status = served.client.get("/v1/serving").json()
    assert (status["version"], status["wanted"]) == (version, version), kind
    assert "`mfmd check --repair`" in status["last_failure"]["reason"], kind
    assert served.metric("mfmd_swap_total", result="failed") >= 1
    assert math.isnan(served.metric("mfmd_serving_wanted_version")), "so `!=` with the version that serves is true"
    assert served.segment(image_bytes()).headers["X-Checkpoint-Version"] == str(version)


def test_a_look_between_the_history_and_the_ref_of_a_first_promotion_is_no_failure(tmp_path: Path) -> None:
    world = World(tmp_path)
    version, plane = world.add(0), InferencePlane(world.settings())
    path = world.registry.ref_path("serving")
    written = path.read_bytes()
    path.unlink()
    plane.follower.poll(0.0)
    path.write_bytes(written)
    plane.follower.poll(1.0)
    assert plane.slots.live is not None
    assert (plane.slots.live.version, plane.follower.failures) == (version, 0)


def test_damage_that_was_overcome_does_not_put_off_the_word_of_the_next(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Each damage is one line of the log, without a traceback, and then counted."""
    caplog.set_level("INFO")
    world = World(tmp_path)
    version, plane = world.add(0), InferencePlane(world.settings())
    path = world.registry.ref_path("serving")
    written = path.read_bytes()
    plane.follower.poll(0.0)
    path.write_bytes(b"")
    for second in range(1, 100):
        plane.follower.poll(float(second))
    failures = plane.follower.failures
    path.write_bytes(written)
    plane.follower.poll(100.0)
    path.write_bytes(b"{}")
    plane.follower.poll(101.0)
    plane.follower.poll(102.0)
    assert plane.slots.live is not None and plane.slots.live.version == version
    assert plane.follower.failures == failures + 1
    assert plane.follower.failure is not None and plane.follower.failure.attempts == 1
    moved = [record.getMessage() for record in caplog.records if "version_wanted" in record.getMessage()]
    assert len(moved) == 1 and "'by': 'test'" in moved[0], "who moved the ref stands in the log"
    told = [record for record in caplog.records if "swap_failed" in record.getMessage()]
    assert failures > 5 and [record.levelname for record in told] == ["ERROR"] * 2
    assert (
        not any("'exc_info': True" in record.getMessage() for record in told)
        and "check --repair" in told[0].getMessage()
    )
