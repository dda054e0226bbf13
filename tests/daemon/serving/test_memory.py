"""Garbage of swaps is collected once all that libraries brought is frozen."""

import subprocess
import sys
import threading

import pytest
import uvicorn

from daemon.serving import server
from tests.daemon.serving.serving_world import World, running, wait_until

GARBAGE = """
import gc, weakref
from daemon.runtime.memory import collect_garbage, freeze_heap
gc.disable()  # it runs when it likes
class Cycle:
    def __init__(self):
        self.me = self
def left():
    return weakref.ref(Cycle())
before = left()
collect_garbage()
assert before() is not None, "a process that did not freeze its heap pays for a collection of all it has"
freeze_heap()
assert before() is None and gc.get_freeze_count() > 1000
after = left()
collect_garbage()
assert after() is None, "garbage of a swap stays"
"""

FIRST = """
import gc, tempfile
from pathlib import Path
from daemon.serving.plane import InferencePlane
from tests.daemon.serving.serving_world import LIGHT, World
with tempfile.TemporaryDirectory() as folder:
    world = World(Path(folder))
    version = world.add(1, **LIGHT)
    plane = InferencePlane(world.settings(), own_process=True)
    plane.slots.install = lambda resident: frozen.append(gc.get_freeze_count())
    frozen = []
    plane.swapper.serve(version)
    assert frozen[0] > 10_000, "not before the first version serves"
    plane.swapper.serve(world.add(2, **LIGHT))
    assert frozen[1] <= frozen[0], "more than once"
"""


def run(code: str) -> None:
    """In a process of its own, in which nothing is frozen yet."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_garbage_is_collected_once_all_that_libraries_brought_is_frozen() -> None:
    run(GARBAGE)


def test_a_plane_in_a_process_of_its_own_freezes_once_before_its_first_version_serves() -> None:
    run(FIRST)


@pytest.mark.parametrize("corrupt", [False, True])
def test_a_load_is_followed_by_one_collection_outside_the_follower(
    world: World, monkeypatch: pytest.MonkeyPatch, corrupt: bool
) -> None:
    threads: list[str] = []
    monkeypatch.setattr(server, "LOADS_A_COLLECTION", 1)
    world.add(1)
    with running(world.settings()) as served:
        served.wait_for(1)
        wait_until(lambda: not served.plane.swapper.garbage, "the first load's garbage is collected")
        monkeypatch.setattr(server, "collect_garbage", lambda: threads.append(threading.current_thread().name))
        version = world.add(2, promote=not corrupt)
        if corrupt:
            world.corrupt(version)
            world.point_at(version)
            served.wait_for_failure(version)
            world.point_at(1)
        wait_until(lambda: bool(threads), "garbage is collected")
    assert "mfmd-follower" not in threads


def test_fewer_loads_wait_for_a_collection_that_they_share(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    looks, collected = list[int](), list[int]()
    real = uvicorn.Server.on_tick

    async def counted(self: uvicorn.Server, counter: int) -> bool:
        looks.append(counter)
        return await real(self, counter)

    monkeypatch.setattr(uvicorn.Server, "on_tick", counted)
    monkeypatch.setattr(server, "LOADS_A_COLLECTION", 3)
    monkeypatch.setattr(server, "collect_garbage", lambda: collected.append(len(looks)))
    world.add(1)
    with running(world.settings()) as served:
        served.wait_for(1)
        served.wait_for(world.add(2))
        seen = len(looks)
        wait_until(lambda: len(looks) >= seen + 2, "the server looks twice")
        assert collected == [] and served.plane.swapper.garbage == 2
        served.wait_for(world.add(3))
        wait_until(lambda: not served.plane.swapper.garbage, "the third load's collection")
    assert len(collected) == 1
