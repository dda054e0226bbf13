"""A drop folder and a real ingest on it, for fault tests: what is written here is remembered for the oracle."""

import hashlib
import io
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from configs.load import merge
from configs.settings import Settings
from daemon.ingest.worker import Ingest
from daemon.metrics import Metrics
from daemon.watch.events import Hints
from storage.buffer.frames import FrameBuffer
from storage.checking import check_state, repair_state
from storage.layout import StateLayout
from tests.faults.promise import Kept, check_promise

PATIENCE = 60.0
"""Deadline of waits (seconds): far more than an idle machine needs."""


def picture(number: int, side: int = 16) -> bytes:
    """A small image whose content follows from its number."""
    pixels = np.random.default_rng(number).integers(0, 256, (side, side, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", compress_level=0)
    return file.getvalue()


class DropWorld:
    """Steps ingest in the test's own thread; the observer's threads are the real ones."""

    def __init__(self, root: Path, **watch: Any) -> None:
        self.folder, self.state = root / "drop", root / "state"
        self.folder.mkdir(exist_ok=True)
        self.tampered = False
        """The test itself did damage: nothing is checked at its end."""
        self.dropped: defaultdict[str, set[str]] = defaultdict(set)
        values = merge({"stability_seconds": 0.1, "advanced": {"rescan_seconds": 0.3, "group_seconds": 0.05}}, watch)
        self.settings = Settings.model_validate(
            {
                "state": self.state,
                "classes": "demo",
                "watch": {"folder": self.folder, **values},
                "buffer": {
                    "height": 32,
                    "width": 32,
                    "capacity_frames": 512,
                    "reserve_bytes": 0,
                    "advanced": {"tile": 32},
                },
            }
        )
        layout = StateLayout(self.state)
        layout.create()
        self.metrics = Metrics(self.settings)
        self.buffer = FrameBuffer.open(layout, self.settings.buffer, writable=True)
        self.hints = Hints(lambda: None)
        self.ingest = Ingest(self.settings, self.buffer, self.metrics.ingest, self.hints)

    @property
    def observer(self) -> Any:
        """watchdog's observer, to be broken."""
        return self.ingest._watcher._root._events._observer

    def drop(self, name: str, content: bytes) -> Path:
        """Write a file in one go."""
        self.promise(name, content)
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return path

    def promise(self, name: str, content: bytes) -> None:
        """Remember a version that is about to be there whole."""
        self.dropped[name].add(hashlib.sha256(content).hexdigest())

    def value(self, name: str, **labels: str) -> float:
        """A sample of the metrics."""
        return self.metrics.registry.get_sample_value(name, labels) or 0.0

    def until(self, condition: Callable[[], Any], seconds: float = PATIENCE) -> None:
        """Step until `condition` holds."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"not in time; {self.ingest.activity}"
            time.sleep(min(0.02, self.ingest.step()))

    def listening(self) -> None:
        """Step until events are heard."""
        self.until(lambda: self.ingest.activity[0].mode == "events")

    def settled(self) -> Kept:
        """Step until nothing waits any more, by the oracle's own look; it must end so, by itself."""
        rescans = self.value("mfmd_watcher_rescans_total")
        self.until(lambda: self.value("mfmd_watcher_rescans_total") >= rescans + 2)
        self.until(lambda: self.ingest.activity[0].pending == 0)
        self.until(lambda: not self.kept().waiting)
        return self.kept()

    def settled_without_timer(self) -> Kept:
        """The same where the next rescan of the timer is far away: events and what follows from them must do."""
        self.until(lambda: self.ingest.activity[0].pending == 0 and not self.kept().waiting)
        return self.kept()

    def kept(self) -> Kept:
        """Ask the oracle."""
        return check_promise(self.state, self.folder, self.dropped)

    def close(self) -> None:
        """Let go of folder and buffer."""
        self.ingest.close()
        self.buffer.close()
        if self.tampered:
            return
        layout = StateLayout(self.state)
        assert not check_state(layout, read_data=True)
        repair = repair_state(layout, read_data=True)
        assert not repair.repaired
        assert not repair.left
