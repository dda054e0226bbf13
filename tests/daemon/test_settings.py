"""A running daemon and its configuration file: broken, changed, reloaded. Real processes."""

import json
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import httpx
import pytest
import yaml

from daemon.cli import main
from daemon.exit_codes import ExitCode

ROOT = Path(__file__).parents[2]
CHILDREN = {name: {"enabled": True} for name in ("serving", "observe", "videos")}
TOKEN = "only for the operator"


@pytest.fixture
def config(make_settings, tmp_path):
    """A configuration file; `write` changes sections of it."""

    class Config:
        path = tmp_path / "mfmd.yaml"

        def write(self, **sections) -> None:
            sections = {name: CHILDREN.get(name, {}) | sections.get(name, {}) for name in {*CHILDREN, *sections}}
            values = make_settings(**sections).model_dump(mode="json", exclude_none=True, exclude={"classes"})
            self.path.write_text(yaml.safe_dump({**values, "classes": "demo"}))

    return Config()


@pytest.fixture
def patiently(wait_until):
    """Wait also for a plane that loads its libraries on a busy machine."""
    return partial(wait_until, seconds=90.0, step=0.05)


@pytest.fixture
def daemon(config, layout, add_version, tmp_path, patiently):
    """`mfmd run` with its children, on two versions of which the second serves."""
    add_version()
    add_version(1)
    config.write()
    log = tmp_path / "daemon.log"
    command = [sys.executable, "-m", "daemon.cli", "run", "--config", str(config.path)]
    with log.open("wb") as output:
        environment = {**os.environ, "MFMD_CONTROL__TOKEN": TOKEN, "MFMD_SCHEDULE__MIN_FRAMES": "5"}
        process = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=output, env=environment)
    try:
        patiently(lambda: process.poll() is not None or layout.run_file("serve").exists())
        yield process
        assert process.poll() is None, log.read_text()[-3000:]
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        assert not layout.run_file("settings").exists()
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def mfmd(config, capsys):
    """Run a command; its exit code and what it printed."""

    def run(*words: str) -> tuple[int, str]:
        capsys.readouterr()
        code = main([*words, "--config", str(config.path)])
        return code, capsys.readouterr().out

    return run


@pytest.fixture
def status(mfmd):
    def look() -> dict:
        code, printed = mfmd("status", "--json")
        assert code == 0
        return json.loads(printed)

    return look


def _url(layout, path: str) -> str:
    port = json.loads(layout.run_file("daemon").read_text())["port"]
    return f"http://127.0.0.1:{port}{path}"


def _metric(layout, name: str) -> float:
    text = httpx.get(_url(layout, "/metrics"), trust_env=False).text
    return next(float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith(f"{name} "))


def _child(status, name: str) -> dict:
    return next(child for child in status()["children"] if child["name"] == name)


def _logged(tmp_path: Path, event: str) -> list[dict]:
    lines = (tmp_path / "daemon.log").read_text().splitlines()
    return [
        line for line in map(json.loads, filter(lambda text: text.startswith("{"), lines)) if line["event"] == event
    ]


def test_a_running_daemon_and_its_file(daemon, config, layout, mfmd, status, patiently, tmp_path):
    plane = _child(status, "serve")["pid"]
    variables = Path(f"/proc/{plane}/environ").read_bytes()
    assert TOKEN.encode() not in variables and b"MFMD_" not in variables.replace(b"_MFMD_", b"")

    config.path.write_text(f"state: {layout.root}\nclasses: demo\nwatch: {{folder: drop}}\nsrving: {{}}\n")
    patiently(lambda: status()["settings"]["problem"])
    assert any("srving: unknown key" in text and "mfmd reload" in text for text in status()["messages"])
    assert _metric(layout, "mfmd_config_file_valid") == 0
    os.kill(plane, signal.SIGKILL)
    patiently(lambda: _child(status, "serve")["pid"] not in (plane, None))
    patiently(lambda: json.loads(layout.run_file("serve").read_text())["pid"] == _child(status, "serve")["pid"])
    assert _child(status, "serve")["restarts"] == 1, "it starts on the settings that the daemon runs on"
    moves = _metric(layout, 'mfmd_serving_moves_total{cause="operator"}')
    assert mfmd("rollback", "--reason", "worse")[0] == 0
    assert status()["serving"]["version"] == 1
    assert mfmd("promote", "2", "--reason", "better after all")[0] == 0
    assert status()["serving"]["version"] == 2
    patiently(lambda: _logged(tmp_path, "version_wanted")[-1]["reason"] == "better after all")
    assert _logged(tmp_path, "version_wanted")[-1]["by"] == "operator", "what a command moved stands in the log"
    for path, body in (("rollback", {}), ("promote", {"version": 2})):
        url, bearer = _url(layout, f"/v1/{path}"), {"Authorization": f"Bearer {TOKEN}"}
        assert httpx.post(url, json=body, headers=bearer, trust_env=False).status_code == 200
    assert _metric(layout, 'mfmd_serving_moves_total{cause="operator"}') == moves + 4
    assert mfmd("reload")[0] == ExitCode.USAGE
    assert mfmd("config", "validate")[0] == ExitCode.USAGE
    os.kill(daemon.pid, signal.SIGHUP)
    patiently(lambda: len(_logged(tmp_path, "settings_not_reloaded")) == 2)
    assert _metric(layout, 'mfmd_config_reloads_total{result="refused"}') == 2

    config.write(gate={"confidence": 0.8}, serving={"port": 1})
    patiently(lambda: status()["settings"]["reload"] == ["gate.confidence"])
    assert status()["settings"]["restart"] == ["serving.port"]
    os.kill(daemon.pid, signal.SIGHUP)
    patiently(lambda: status()["settings"]["reload"] == [])
    assert any("only a restart applies: serving.port" in text for text in status()["messages"])
    assert _metric(layout, 'mfmd_config_changed_settings{needs="restart"}') == 1
    snapshot = json.loads(layout.run_file("settings").read_text())
    assert snapshot["gate"]["confidence"] == 0.8 and snapshot["serving"]["port"] == 0
    assert snapshot["schedule"]["min_frames"] == 5, "the environment was resolved at the start"

    config.write(schedule={"new_frames": 7})
    code, printed = mfmd("reload")
    assert code == 0 and "gate.confidence" in printed and "schedule.new_frames" in printed and "restart" not in printed
    assert status()["next_round"]["frames_missing"] == 7

    before = len(_logged(tmp_path, "settings_reloaded"))
    children = status()["children"]
    assert {child["name"] for child in children} == {"serve", "observe", "frames"}
    for child in children:
        os.kill(child["pid"], signal.SIGHUP)
    patiently(lambda: len(_logged(tmp_path, "settings_reloaded")) == before + 3)
    names = [line["process"] for line in _logged(tmp_path, "settings_reloaded")]
    assert names[:before] == ["daemon"] * before and sorted(names[before:]) == ["frames", "observe", "serve"]
    assert [child["pid"] for child in status()["children"]] == [child["pid"] for child in children]
