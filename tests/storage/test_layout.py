import subprocess
import sys
from pathlib import Path

import pytest

from storage.errors import AlreadyRunning
from storage.layout import StateLayout

HOLD = """
import sys
from pathlib import Path
from storage.layout import StateLayout
with StateLayout(Path(sys.argv[1])).lock():
    print("held", flush=True)
    sys.stdin.read()
"""


def test_paths_are_those_of_the_design(tmp_path: Path):
    layout = StateLayout(tmp_path)
    assert layout.frames_zarr == tmp_path / "buffer" / "frames.zarr"
    assert layout.catalog == tmp_path / "buffer" / "catalog.sqlite"
    assert layout.observations == tmp_path / "buffer" / "observations.sqlite"
    assert layout.run_file("serve") == tmp_path / "run" / "serve.json"
    assert layout.token_file == tmp_path / "run" / "control.token"
    assert not list(tmp_path.iterdir()), "a layout makes nothing by itself"


def test_create_makes_every_folder_and_may_be_repeated(tmp_path: Path):
    layout = StateLayout(tmp_path / "deep" / "state")
    layout.create()
    layout.create()
    assert sorted(path.name for path in layout.root.iterdir()) == ["buffer", "checkpoints", "rounds", "run", "source"]


def test_second_daemon_is_refused_and_the_lock_falls_with_its_process(tmp_path: Path):
    layout = StateLayout(tmp_path)
    assert not layout.locked()
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        assert layout.locked()
        with pytest.raises(AlreadyRunning, match=f"{tmp_path}.*{holder.pid}"), layout.lock():
            pass
        holder.kill()
    assert not layout.locked()
    with layout.lock():
        assert layout.locked()


def test_asking_whether_it_is_locked_never_keeps_a_daemon_from_starting(tmp_path: Path):
    layout = StateLayout(tmp_path)
    for _ in range(20):
        assert not layout.locked()
        with layout.lock():
            assert layout.locked()


def test_an_error_in_the_locked_part_passes_unchanged(tmp_path: Path):
    with pytest.raises(RuntimeError, match="mine"), StateLayout(tmp_path).lock():
        raise RuntimeError("mine")
