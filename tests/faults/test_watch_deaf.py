"""An observer that hears nothing is found, said and replaced, and believed again once it hears."""

import time

from daemon.watch import watcher
from daemon.watch.events import Hints
from tests.faults.drop_world import picture


def test_an_observer_that_hears_nothing_is_polling_until_it_hears_again(drop_world, monkeypatch):
    monkeypatch.setattr(watcher, "EVENT_SECONDS", 0.2)
    world = drop_world()
    world.listening()
    world.until(lambda: time.time() > world.ingest._watcher._root.listening_since + 0.3)
    with monkeypatch.context() as deaf:
        deaf.setattr(Hints, "add", lambda self, path, renamed: None)
        world.drop("a.png", picture(1))
        world.until(lambda: world.ingest.activity[0].mode_reason == "deaf")
        assert world.ingest.activity[0].mode == "polling"
        assert "no event" in world.ingest.activity[0].detail
        assert world.value("mfmd_watcher_mode_info", mode="polling", reason="deaf") == 1
        assert world.settled().committed == {"a.png"}
    world.drop("b.png", picture(2))
    world.until(lambda: world.ingest.activity[0].mode == "events")
    assert world.settled().committed == {"a.png", "b.png"}


def test_an_observer_that_hears_is_trusted(drop_world, monkeypatch):
    monkeypatch.setattr(watcher, "EVENT_SECONDS", 0.2)
    world = drop_world(advanced={"rescan_seconds": 0.05})
    world.listening()
    world.until(lambda: time.time() > world.ingest._watcher._root.listening_since + 0.3)
    for number in range(5):
        world.drop(f"{number % 2}/{number}.png", picture(number))
        world.settled()
    (world.folder / "0" / "0.png").chmod(0o600)
    world.ingest._watcher.rescan_soon()
    end = time.monotonic() + 0.5
    world.until(lambda: time.monotonic() > end)
    assert world.ingest.activity[0].mode == "events"
    assert world.value("mfmd_watcher_restarts_total") == 0
