"""Whatever takes the serving ref's place: the old version answers on, a counter says so, and the next ref counts."""

import contextlib
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.daemon.serving.serving_world import World, image_bytes, running, wait_until
from tests.storage.no_refs import NO_REFS

pytestmark = pytest.mark.timeout(60)


@pytest.mark.parametrize("spoil", [*NO_REFS.values(), lambda path: None], ids=[*NO_REFS, "nothing"])
def test_the_old_version_serves_on_until_there_is_a_ref_again(tmp_path: Path, spoil: Callable[[Path], None]) -> None:
    world = World(tmp_path)
    world.add(0)
    with running(world.settings()) as served:
        served.wait_for(1)
        path = world.registry.ref_path("serving")
        path.unlink()
        spoil(path)
        wait_until(lambda: served.metric("mfmd_swap_total", result="failed") >= 1, "a look at the ref fails")
        status = served.client.get("/v1/serving").json()
        assert (status["version"], status["wanted"]) == (1, 1)
        assert "`mfmd check --repair`" in status["last_failure"]["reason"]
        assert served.segment(image_bytes()).headers["X-Checkpoint-Version"] == "1"
        with contextlib.suppress(OSError):
            path.rename(path.with_name("away"))
        second = world.add(1, promote=False)
        world.point_at(second)
        wait_until(lambda: served.client.get("/v1/serving").json()["version"] == second, "the new ref", 5.0)
