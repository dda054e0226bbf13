"""Who may read what commands write: the state directory is private, the operator's umask decides about the rest."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
WRITES = """
import sys
from pathlib import Path
import daemon.cli.app
from daemon.cli import main
from storage import durable
from storage.durable.permissions import shared_files

def write(folder: Path) -> None:
    durable.make_directory(folder / "state")
    durable.write_text(folder / "state" / "record", "")
    (folder / "state" / "plain").touch()
    durable.write_text(folder / "state" / "secret", "", mode=0o600)
    durable.make_directory(folder / "masks", shared=True)
    durable.write_bytes(folder / "masks" / "mask", b"", shared=True)
    with shared_files():
        (folder / "export").mkdir()
        (folder / "export" / "weights").touch()
    (folder / "late").touch()

daemon.cli.app.app.command()(write)
sys.exit(main(["write", sys.argv[1]]))
"""


def _modes(folder: Path, umask: int, environment: dict[str, str]) -> dict[str, int]:
    command = [sys.executable, "-c", WRITES, str(folder)]
    subprocess.run(command, check=True, cwd=ROOT, umask=umask, env={**os.environ, **environment})
    return {str(path.relative_to(folder)): path.stat().st_mode & 0o777 for path in folder.rglob("*")}


@pytest.mark.parametrize(
    ("umask", "private", "shared"), [(0o022, (0o750, 0o640), (0o755, 0o644)), (0o077, (0o700, 0o600), (0o700, 0o600))]
)
def test_a_command_keeps_others_out_of_the_state_only(tmp_path, umask, private, shared):
    expected = {
        "state": private[0], "state/record": private[1], "state/plain": private[1], "state/secret": 0o600,
        "masks": shared[0], "masks/mask": shared[1], "export": shared[0], "export/weights": shared[1],
        "late": private[1],
    }  # fmt: skip
    assert _modes(tmp_path, umask, {}) == expected


def test_a_child_knows_the_umask_of_the_operator(tmp_path):
    """The daemon's children inherit its strict umask, and yet write masks and exports for others."""
    modes = _modes(tmp_path, 0o027, {"_MFMD_UMASK": "22"})
    assert (modes["state/record"], modes["masks/mask"], modes["export/weights"]) == (0o640, 0o644, 0o644)
