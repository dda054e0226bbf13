"""The main job, nothing replaced: drop folder, buffer, round under accelerate, gate, swap, rollback."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import pytest

from daemon.demo.driving import DrivenDaemon
from daemon.demo.scoring import ask

pytestmark = pytest.mark.disk


@contextmanager
def questions(driven: DrivenDaemon, image: Path) -> Iterator[list[int]]:
    """Ask the server again and again; the versions that answered, in order. Any failed request raises at the end."""
    stop, versions, failures = threading.Event(), [], []

    def keep_asking() -> None:
        base = driven.url("serve")
        assert base is not None
        with httpx.Client(timeout=30.0) as client:
            while not stop.wait(0.05):
                try:
                    versions.append(ask(client, base, image)[1])
                except httpx.HTTPError as error:
                    failures.append(error)

    thread = threading.Thread(target=keep_asking)
    thread.start()
    try:
        yield versions
    finally:
        stop.set()
        thread.join()
    assert not failures


@pytest.mark.timeout(240)
def test_from_drop_folder_to_rollback(driven: DrivenDaemon, camera: Callable[[int], list[Path]]) -> None:
    images = camera(24)
    driven.start()
    driven.wait_until_serving(1, 60)
    base = driven.url("serve")
    assert base is not None
    with httpx.Client(timeout=30.0) as client:
        before, _ = ask(client, base, images[0])

        with questions(driven, images[0]) as versions:
            driven.drop(images)
            driven.wait_until_committed(len(images), 30)
            over = driven.follow_round(1, 120)
            assert over.verdict.decision == "accepted", over.verdict
            assert over.version == 2
            driven.wait_until_serving(2, 30)
            after, version = ask(client, base, images[0])
            assert version == 2
            assert (before != after).any()

            rolled_back = driven.run_command("rollback", "--reason", "end-to-end test")
            assert rolled_back.returncode == 0, rolled_back.stderr
            driven.wait_until_serving(1, 30)
            again, version = ask(client, base, images[0])

    assert version == 1
    np.testing.assert_array_equal(again, before)
    assert set(versions) == {1, 2}
    changes = np.flatnonzero(np.diff(versions))
    assert len(changes) <= 2, "an old version answered after a new one"
    events = [(event.event, event.version) for event in driven.registry.history()]
    assert ("promoted", 2) in events
    assert events[-1] == ("rolled_back", 1)
    assert driven.stop() == 0
