"""A reader in another process sees every ref that moves, never half of one, and needs no modification time."""

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from storage.registry.files import read_small
from storage.registry.manifest import Manifest
from storage.registry.refs import Refs
from storage.registry.registry import CheckpointRegistry

FOLLOW = """
import sys, time
from pathlib import Path
from storage.registry.registry import CheckpointRegistry
registry, seen = CheckpointRegistry(Path(sys.argv[1])), 0
while seen < int(sys.argv[2]):
    ref = registry.serving()
    if ref is not None and ref.version != seen:
        seen = ref.version
        registry.verify(seen)
        print(seen, flush=True)
    time.sleep(0.02)
"""


def test_a_follower_sees_each_promotion_before_the_next(
    tmp_path: Path, weights: Callable[[str], Path], manifest: Callable[..., Manifest]
):
    registry = CheckpointRegistry(tmp_path / "checkpoints")
    command = [sys.executable, "-c", FOLLOW, str(registry.root), "4"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as follower:
        assert follower.stdout is not None
        for number in range(1, 5):
            registry.add(weights(f"{number}"), manifest(), by="round")
            registry.promote(number, by="gate", reason="")
            assert follower.stdout.readline() == f"{number}\n"
    assert follower.returncode == 0


def test_modification_times_that_stand_still_hide_nothing(tmp_path: Path):
    refs = Refs(tmp_path)
    for version in (1, 2):
        refs.write("serving", version, "gate", "")
        os.utime(refs.path("serving"), (1.0, 1.0))
        found = refs.read("serving")
        assert found is not None and found.version == version


@pytest.mark.parametrize("stale", [1, 3])
def test_a_handle_that_went_stale_on_a_network_mount_is_opened_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stale: int
):
    refs, read, left = Refs(tmp_path), read_small, stale
    refs.write("serving", 7, "gate", "")

    def sometimes(path: Path, most: int) -> bytes:
        nonlocal left
        left -= 1
        if left >= 0:
            raise OSError(errno.ESTALE, "Stale file handle", str(path))
        return read(path, most)

    monkeypatch.setattr("storage.registry.refs.read_small", sometimes)
    found = refs.read("serving")
    assert found is not None and found.version == 7


def test_a_name_that_a_mount_remembers_as_missing_is_asked_for_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    refs, read, left = Refs(tmp_path), read_small, 1
    assert refs.read("serving") is None
    refs.write("serving", 7, "gate", "")

    def remembered(path: Path, most: int) -> bytes:
        nonlocal left
        left -= 1
        if left >= 0:
            raise FileNotFoundError(errno.ENOENT, "No such file", str(path))
        return read(path, most)

    monkeypatch.setattr("storage.registry.refs.read_small", remembered)
    found = refs.read("serving")
    assert found is not None and found.version == 7
