"""The Unix socket for local commands: only its owner may use it, a long path is no obstacle, a copy leads nowhere."""

import os
import shutil
import stat
import subprocess
import sys

import pytest
from fastapi import FastAPI

from daemon.control.client import ControlClient, ControlFailed
from daemon.net.local import listen_locally
from daemon.runtime.run_record import publish_record
from storage.layout import StateLayout
from tests.daemon.running import serving_locally


@pytest.fixture
def app() -> FastAPI:
    made = FastAPI()

    @made.get("/v1/rounds")
    def rounds() -> dict[str, int]:
        return {"running": 7}

    return made


@pytest.fixture(params=["state", "/".join(["a-long-name-of-a-folder"] * 9)])
def layout(request, tmp_path) -> StateLayout:
    made = StateLayout(tmp_path / request.param)
    made.create()
    publish_record(made, "daemon", "127.0.0.1", 1)
    return made


def test_a_command_reaches_the_daemon_and_needs_no_token(app, layout):
    with serving_locally(app, layout):
        assert stat.S_IMODE(layout.socket.stat().st_mode) == 0o600
        assert ControlClient(layout).running_round() == 7
    assert not layout.socket.exists()


def test_the_socket_of_a_killed_daemon_is_replaced(app, layout):
    with listen_locally(layout.socket):
        left = layout.socket.with_name("left")
        layout.socket.rename(left)
    left.rename(layout.socket)
    with pytest.raises(ControlFailed, match="no daemon runs"):
        ControlClient(layout).running_round()
    with serving_locally(app, layout):
        assert ControlClient(layout).running_round() == 7


def test_a_copy_of_the_state_directory_does_not_lead_to_the_daemon(app, layout, tmp_path):
    copy = StateLayout(tmp_path / "copy")
    with serving_locally(app, layout):
        subprocess.run(["cp", "-a", layout.root, copy.root], check=True)
        assert stat.S_ISSOCK(copy.socket.stat().st_mode)
        with pytest.raises(ControlFailed, match="no daemon runs"):
            ControlClient(copy).running_round()


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("setpriv") is None, reason="needs another user to be")
def test_another_user_is_refused(app, layout, tmp_path):
    connect = "import socket, sys; socket.socket(socket.AF_UNIX).connect(sys.argv[1])"
    for folder in (*layout.run.parents[: len(layout.run.parts) - 2], layout.run):
        folder.chmod(folder.stat().st_mode | 0o005)
    with serving_locally(app, layout):
        command = ["setpriv", "--reuid=65534", "--clear-groups", sys.executable, "-S", "-c", connect, "control.sock"]
        refused = subprocess.run(command, capture_output=True, text=True, cwd=layout.run)
    assert "PermissionError" in refused.stderr, refused.stderr
