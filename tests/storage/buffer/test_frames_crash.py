"""The promise of the buffer, held against SIGKILL: what was acknowledged is there, whole; nothing else is."""

import importlib.util
import random
import subprocess
import sys
import threading
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from storage.buffer.frames import FrameBuffer
from storage.layout import StateLayout

pytestmark = pytest.mark.disk

SCRIPT = Path(__file__).with_name("frame_writer_process.py")


def load_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("frame_writer_process", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


WRITER = load_script()
CAPACITY = WRITER.SETTINGS.capacity_frames
GROUP = 4


def start(layout: StateLayout, first: int, *step: str) -> subprocess.Popen[str]:
    command = [sys.executable, str(SCRIPT), str(layout.root), str(first), str(GROUP), *step]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def check(layout: StateLayout, acknowledged: int) -> list[int]:
    """Open the buffer as the next process would and hold it against the promise; returns the frames it has."""
    with FrameBuffer.open(layout, WRITER.SETTINGS, writable=False) as reader:
        seen = [int(record.name.removesuffix(".png")) for record in reader.records()]
    with FrameBuffer.open(layout, WRITER.SETTINGS, writable=True) as buffer:
        records = buffer.records()
        numbers = [int(record.name.removesuffix(".png")) for record in records]
        assert numbers == seen, "opening for writing changes nothing that a reader saw"
        for record, number in zip(records, numbers, strict=True):
            assert np.array_equal(buffer.read(record), WRITER.pixels_of(number)), f"frame {number} is not what it was"
            assert buffer.catalog.known(WRITER.frame_of(number).file)
        committed = buffer.catalog.counts().committed_total
        slots = {record.slot for record in records}
        assert len(slots) == len(records), "two frames in one slot"
        assert set(buffer._array.shard_indices()) == slots, "files without a committed frame"
        assert not list(layout.buffer.rglob("*.partial"))
    assert committed in (acknowledged, acknowledged + GROUP), "a frame was lost, or half a group committed"
    assert numbers == list(range(committed))[-CAPACITY:], "the newest frames, in order, up to the capacity"
    return numbers


def test_killed_at_any_moment_it_keeps_its_promise(layout: StateLayout):
    """Five kills of one state directory at random moments, eviction and reuse of slots included."""
    moments, committed = random.Random(4), 0
    for _ in range(5):
        with start(layout, committed) as writer:
            assert writer.stdout is not None
            assert writer.stdout.readline() == "open\n"
            answers = [writer.stdout.readline() for _ in range(moments.randint(2, 4))]
            killer = threading.Timer(moments.uniform(0.0, 0.03), writer.kill)
            killer.start()
            answers += writer.stdout.readlines()
            killer.join()
        acknowledged = sum(line.endswith("\n") for line in answers) * GROUP
        committed = max(check(layout, committed + acknowledged)) + 1
    assert committed > 2 * CAPACITY


@pytest.mark.parametrize("step", ["before fsync", "before commit", "inside commit", "after commit"])
def test_killed_at_a_step_of_a_commit(layout: StateLayout, step: str):
    """With a full buffer, so that this commit also evicts: all of the old frames, or all of the new ones."""
    with FrameBuffer.open(layout, WRITER.SETTINGS, writable=True) as buffer:
        buffer.append([WRITER.frame_of(number) for number in range(12)])
    with start(layout, 12, step) as writer:
        assert writer.stdout is not None
        assert writer.stdout.read() == "open\n", "it died within the first commit"
    assert writer.returncode == -9
    numbers = check(layout, 12)
    assert numbers == (list(range(6, 16)) if step == "after commit" else list(range(2, 12)))
    with FrameBuffer.open(layout, WRITER.SETTINGS, writable=True) as buffer:
        left = [WRITER.frame_of(number) for number in range(12, 16)]
        assert len(buffer.append(left)) == (0 if step == "after commit" else 4), "exactly once, whatever happened"
