"""An observer that hears nothing is found, said and replaced, and believed again once it hears."""

import math
import time

from watchdog.observers.inotify_c import InotifyFD

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


def test_a_sub_folder_without_a_watch_is_polled_until_it_has_one(drop_world, monkeypatch):
    monkeypatch.setattr(watcher, "EVENT_SECONDS", 0.2)
    real = InotifyFD.add_callback

    def limited(self, path, *args):
        if path.endswith(b"far"):
            raise OSError(28, "inotify watch limit reached")
        return real(self, path, *args)

    with monkeypatch.context() as limit:
        limit.setattr(InotifyFD, "add_callback", limited)
        world = drop_world(advanced={"rescan_seconds": 0.05})
        (world.folder / "far").mkdir()
        world.listening()
        world.until(lambda: time.time() > world.ingest._watcher._root.listening_since + 0.3)
        numbers = iter(range(1000))

        def deaf() -> bool:
            """Files go on coming, in the folder that is heard and in the other."""
            number = next(numbers)
            world.drop(f"near{number}.png", picture(2 * number))
            world.drop(f"far/{number}.png", picture(2 * number + 1))
            world.settled()
            return world.ingest.activity[0].mode_reason == "deaf"

        world.until(deaf)
        watch = world.ingest.activity[0]
        assert watch.mode == "polling" and f"in {world.folder}/far" in watch.detail
        assert not deaf() or world.ingest.activity[0].mode == "polling", "events of other folders are no proof"
    world.ingest._watcher._root.distrust("again", math.inf, f"{world.folder}/far")
    world.drop("far/last.png", picture(5000))
    world.until(lambda: world.ingest.activity[0].mode == "events")
