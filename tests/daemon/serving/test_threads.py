"""The plane's threads: started nice or not they run, a bug in one batch ends none, and one that ended is seen."""

import asyncio
import os
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import uvicorn

from daemon.serving.batcher import Batcher, Fitted, Labels, fit
from daemon.serving.metrics import ServingMetrics
from daemon.serving.plane import InferencePlane
from daemon.serving.server import PlaneServer, serve
from daemon.serving.threads import NICENESS, be_nice
from daemon.status.collect import collect_status
from daemon.status.messages import operator_messages
from storage.layout import StateLayout
from tests.daemon.serving.serving_world import HEIGHT, WIDTH, Served, World, image_bytes, picture, running, wait_until


@pytest.mark.skipif(not hasattr(os, "setpriority"), reason="no priorities here")
@pytest.mark.parametrize(("started", "expected"), [(0, NICENESS), (NICENESS + 5, NICENESS + 5)])
def test_a_process_that_was_started_nicer_stays_so(started: int, expected: int) -> None:
    # To lower niceness is refused to everybody but root: the thread would end before its first look at the ref.
    def niceness() -> int:
        thread = threading.get_native_id()
        os.setpriority(os.PRIO_PROCESS, thread, max(started, os.getpriority(os.PRIO_PROCESS, thread)))
        be_nice()
        return os.getpriority(os.PRIO_PROCESS, thread)

    if os.getpriority(os.PRIO_PROCESS, 0) > NICENESS:
        expected = max(expected, os.getpriority(os.PRIO_PROCESS, 0))
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(niceness).result(10) == expected


def test_a_bug_behind_an_answer_does_not_end_the_batcher(world: World) -> None:
    world.add(1)
    plane = InferencePlane(world.settings())
    plane.swapper.serve(1)

    def broken(version: int, image: Fitted, labels: Labels) -> None:
        raise RuntimeError("a bug")

    batcher = Batcher(plane.slots, plane.settings.serving, ServingMetrics(plane.settings), broken)
    with plane.slots.lease() as resident:
        image = fit(picture().copy(), resident, plane.settings.serving)
        waiting = batcher.submit(resident, [image, image])
        batcher.start()
        assert all(answer.result(30).shape == (HEIGHT, WIDTH) for answer in waiting)
        assert batcher.submit(resident, [image])[0].result(30).shape == (HEIGHT, WIDTH)
        wait_until(lambda: resident.holds == 1, "the batcher's holds end")
    batcher.stop(30)
    plane.stop()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize(("part", "ready"), [("batcher", 503), ("follower", 200)])
def test_a_thread_that_ended_is_seen(world: World, part: str, ready: int, monkeypatch: pytest.MonkeyPatch) -> None:
    world.add(1)
    monkeypatch.setattr(PlaneServer, "on_tick", uvicorn.Server.on_tick)  # it stays to be asked
    with running(world.settings()) as served:
        served.wait_for(1)
        assert served.client.get("/healthz").json() == {"status": "ok", "problems": []}
        _end(served, part, monkeypatch)
        health = served.client.get("/healthz")
        assert (health.status_code, health.json()["status"]) == (503, "dead")
        [problem] = health.json()["problems"]
        assert part in problem and served.client.get("/v1/serving").json()["problems"] == [problem]
        assert served.client.get("/v2/health/live").status_code == 503
        assert served.client.get("/readyz").status_code == ready
        settings = served.plane.settings
        assert f"the inference plane: {problem}" in operator_messages(collect_status(settings), settings)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_plane_that_can_answer_nobody_ends_with_a_failure(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def bug(*_: object) -> None:
        raise AssertionError("a bug")

    world.add(1)
    monkeypatch.setattr(Batcher, "_next_batch", bug)
    settings = world.settings()
    assert serve(settings) == 1  # it ends by itself, and its supervisor starts a new one
    assert not StateLayout(settings.state).run_file("serve").exists()


def _end(served: Served, part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def bug(*_: object) -> None:
        raise AssertionError("a bug")

    if part == "batcher":
        monkeypatch.setattr(served.plane.batcher, "_next_batch", bug)
        served.segment(image_bytes())  # wakes the thread; this one is still answered
    else:
        monkeypatch.setattr(served.plane.follower, "poll", bug)
    wait_until(lambda: bool(served.plane.dead), f"the {part}'s thread ends")


def test_a_request_that_ends_while_its_image_is_decoded_leaves_nothing_in_the_queue(world: World) -> None:
    world.add(1)
    plane = InferencePlane(world.settings())  # its batcher is not started: what is queued stays
    plane.swapper.serve(1)
    decoding, go_on = threading.Event(), threading.Event()

    def slow() -> list[np.ndarray]:
        decoding.set()
        assert go_on.wait(30)
        return [picture().copy()]

    async def cut_off() -> None:
        with plane.slots.lease() as resident:
            task = asyncio.create_task(plane.segment(resident, slow, len))
            await asyncio.to_thread(decoding.wait, 30)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    with plane.slots.lease() as other:  # another request keeps the version, as it would be under load
        asyncio.run(cut_off())
        go_on.set()
        plane._pool.shutdown()
        assert plane.batcher.depth == 0 and other.holds == 1
    plane.stop()
