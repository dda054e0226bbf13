"""Tokens are never shown: not in logs, answers, errors, files of the state directory, nor by any command."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from configs.errors import ConfigError
from configs.load import load_settings
from daemon.cli import main
from daemon.runtime.run_record import read_run_record
from tests.daemon.certificates import self_signed
from tests.daemon.serving.serving_world import CLASSES, LIGHT, World, image_bytes, wait_until

SECRETS = {"control": "s3cret-of-control", "serving": "s3cret-of-serving"}
LOOKS = {
    "daemon": ["/v1/status", "/v1/checkpoints", "/v1/rounds", "/metrics", "/healthz", "/openapi.json", "/no"],
    "serve": ["/v1/serving", "/v1/classes", "/metrics", "/v2", "/v2/models/mfmd", "/openapi.json", "/no"],
}


def shown(text: str) -> list[str]:
    """Which secrets stand in a text."""
    return [name for name, secret in SECRETS.items() if secret in text]


@pytest.fixture
def config(world: World) -> Path:
    """A daemon with all its tokens, TLS on both planes, and the loudest log."""
    certificate, key = map(str, self_signed(world.root))
    token = world.root / "serving.token"
    token.write_text(SECRETS["serving"])
    tls = {"certificate": certificate, "key": key}
    content = {
        "state": "state", "classes": CLASSES, "watch": {"folder": "drop"}, "log": {"level": "debug"},
        "buffer": {"height": 64, "width": 96, "capacity_frames": 16, "reserve_bytes": 0, "advanced": {"tile": 32}},
        "schedule": {"enabled": False}, "observe": {"enabled": False},
        "control": {"port": 0, **tls},
        "serving": {"port": 0, "device": "cpu", "threads": 1, "token_file": str(token), **tls},
    }  # fmt: skip
    path = world.root / "mfmd.yaml"
    path.write_text(json.dumps(content))
    (world.root / "drop").mkdir()
    return path


def test_no_log_line_status_answer_or_file_holds_a_token(
    world: World, config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    version = world.add(1, **LIGHT)
    monkeypatch.setenv("MFMD_CONTROL__TOKEN", SECRETS["control"])
    log = world.root / "log"
    seen: list[str] = []
    command = [sys.executable, "-m", "daemon.cli", "run", "--config", str(config)]
    with log.open("wb") as stream, subprocess.Popen(command, stdout=stream, stderr=stream) as daemon:
        try:
            for name, looks in LOOKS.items():
                seen += _ask_everything(world, name, looks, daemon, log)
            for words in (["status", "--json"], ["status"], ["config", "show"], ["checkpoints", "list", "--json"]):
                assert main([*words, "--config", str(config)]) == 0, words
            assert main(["status", "--check", "--config", str(config)]) == 0, "over TLS"
            printed = capsys.readouterr()
            assert f"answers with {version}" in printed.out, "status reached the inference plane"
            for words in (["refused", "retry", "x.png"], ["--log-level", "debug", "adapt"]):
                assert main([*words, "--config", str(config)]) != 0, "there is no such file, and there are no frames"
            printed_too = capsys.readouterr()
            seen += [*printed, *printed_too]
            daemon.send_signal(signal.SIGTERM)
            assert daemon.wait(60) == 0, log.read_text()[-3000:]
        finally:
            if daemon.poll() is None:
                daemon.kill()
    assert "Traceback" not in log.read_text()
    files = [path for path in world.layout.root.rglob("*") if path.is_file()]
    assert len(files) > 5
    for text in [*seen, log.read_text(), *(path.read_bytes().decode("latin-1") for path in files)]:
        assert not shown(text), text[:2000]


def _ask_everything(
    world: World, name: str, looks: list[str], daemon: "subprocess.Popen[bytes]", log: Path
) -> list[str]:
    """Bodies and headers of answers to looks, changes and nonsense, with the token, with a wrong one, and without."""
    file = world.layout.run_file(name)
    wait_until(lambda: file.exists() or daemon.poll() is not None, f"{file} is written", 60)
    assert daemon.poll() is None, log.read_text()[-3000:]
    address = read_run_record(file)
    assert address is not None and address.tls
    own = SECRETS["control" if name == "daemon" else "serving"]
    answers: list[httpx.Response] = []
    with httpx.Client(
        base_url=f"https://127.0.0.1:{address.port}", verify=False, timeout=30, trust_env=False
    ) as client:
        if name == "serve":
            wait_until(lambda: client.get("/readyz").status_code == 200, "a version serves", 60)
        for given in (own, own + "x", ""):
            headers = {"Authorization": f"Bearer {given}"} if given else {}
            answers += [client.get(path, headers=headers) for path in looks]
            for path in ("/v1/rollback", "/v1/rounds", "/v1/checkpoints/99/pin", "/v1/segment", "/v2/repository/index"):
                answers.append(client.post(path, headers=headers, content=b"{nonsense"))
            answers.append(client.post("/v1/segment", headers=headers, content=image_bytes()))
    assert {401, 200} <= {answer.status_code for answer in answers}
    return [f"{answer.headers} {answer.text}" for answer in answers]


@pytest.mark.parametrize(
    "text",
    [
        "control: {token: 5318008}",
        "control: {tokens: 5318008}",
        "control: {token: [5318008]}",
        "serving: {repository_token: 5318008}",
        "control:\n  token: 'not closed 5318008",
        "control:\n  token: *5318008",
        "control:\n  token: !5318008 x",
        "control:\n  token: 5318008: 5318008",
        'control:\n  token: "5318008\n  5318008\\q"',
    ],
)
def test_a_wrong_configuration_is_told_without_its_token(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    path = tmp_path / "mfmd.yaml"
    path.write_text(f"classes: demo\nwatch: {{folder: drop}}\n{text}\n")
    with pytest.raises(ConfigError) as refused:
        load_settings(path)
    assert "5318008" not in str(refused.value)
    assert main(["--log-level", "debug", "status", "--config", str(path)]) == 2
    printed = capsys.readouterr()
    assert "config_invalid" in printed.err
    assert "5318008" not in printed.out + printed.err, printed.err


def test_an_environment_of_the_wrong_kind_is_told_without_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "mfmd.yaml"
    path.write_text("classes: demo\nwatch: {folder: drop}\n")
    monkeypatch.setitem(os.environ, "MFMD_CONTROL", '{"token": 5318008}')
    with pytest.raises(ConfigError, match=r"control\.token") as refused:
        load_settings(path)
    assert "5318008" not in str(refused.value)
