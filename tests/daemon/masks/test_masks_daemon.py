"""`mfmd run` with `masks.folder`: the daemon, its plane and its masks process, all real."""

import json
import os
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from adapters.inference.segment import segment_image
from daemon.masks.mask_file import mask_path, read_note
from tests.daemon.serving.serving_world import CLASSES, HEIGHT, WIDTH, World, image_bytes, picture, wait_until

PATIENCE = 90.0
"""Deadline of a wait (seconds): processes that load torch on a busy machine."""


@pytest.mark.nightly
def test_masks_go_on_after_the_plane_and_their_own_process_were_killed(world: World) -> None:
    world.add(1)
    drop, masks = world.root / "drop", world.root / "masks"
    drop.mkdir()
    config = world.root / "mfmd.yaml"
    content = {
        "state": str(world.layout.root),
        "classes": CLASSES,
        "watch": {"folder": str(drop), "stability_seconds": 0.0, "advanced": {"rescan_seconds": 0.1}},
        "serving": {"port": 0, "device": "cpu", "threads": 1, "advanced": {"follow_seconds": 0.05}},
        "control": {"port": 0},
        "observe": {"enabled": False},
        "masks": {"folder": str(masks)},
    }
    config.write_text(json.dumps(content))  # JSON is YAML
    command = [sys.executable, "-m", "daemon.cli", "run", "--config", str(config)]
    log = world.root / "log"
    with log.open("wb") as output, subprocess.Popen(command, stdout=output, stderr=output) as daemon:
        try:
            for number, victim in enumerate((None, "serve", "masks")):
                if victim is not None:
                    os.kill(_pid(world, victim), signal.SIGKILL)
                _drop_and_check(world, drop, masks, number)
            wait_until(lambda: 'mfmd_masks_total{result="written"} 1.0' in _metrics(world), "counted since its restart")
            daemon.send_signal(signal.SIGTERM)
            assert daemon.wait(60) == 0, log.read_text()[-2000:]
        finally:
            if daemon.poll() is None:
                daemon.kill()


def _drop_and_check(world: World, drop: Path, masks: Path, number: int) -> None:
    """An image gets the mask that its network makes."""
    path = mask_path(masks, f"{number}.png")
    (drop / f"{number}.png").write_bytes(image_bytes(seed=number))
    wait_until(lambda: read_note(path) is not None, f"mask {number} is written", PATIENCE)
    with Image.open(path) as mask:
        wanted = segment_image(world.networks[1], picture(seed=number), (HEIGHT, WIDTH))
        np.testing.assert_array_equal(np.asarray(mask), wanted)


def _pid(world: World, child: str) -> int:
    activity = json.loads(world.layout.run_file("activity").read_text())
    return next(int(item["pid"]) for item in activity["children"] if item["name"] == child)


def _metrics(world: World) -> str:
    address = json.loads(Path(world.layout.run_file("daemon")).read_text())
    with urllib.request.urlopen(f"http://127.0.0.1:{address['port']}/metrics", timeout=30) as answer:
        return str(answer.read().decode())
