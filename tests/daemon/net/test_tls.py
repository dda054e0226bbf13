"""The control plane over TLS: clients follow, talk to the right certificate only, and bad files are told at once."""

import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI

from configs.errors import ConfigError
from configs.serving import ControlSettings
from daemon.control.client import ControlClient, ControlFailed, ask
from daemon.control.server import ControlServer, bind
from daemon.net.tls import tls_files
from daemon.runtime.run_record import RunRecord, publish_record
from daemon.status.plane_probe import probe_plane
from storage.layout import StateLayout
from tests.daemon.certificates import self_signed


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    return self_signed(tmp_path)


@contextmanager
def secure_server(layout: StateLayout, certificate: Path, key: Path, heard: list[str]) -> Iterator[RunRecord]:
    """A control server over TLS with one route; its run file."""
    app = FastAPI()

    @app.get("/v1/rounds")
    @app.get("/v1/serving")
    def rounds() -> dict[str, object]:
        heard.append("asked")
        return {"running": 7, "ready": True, "version": 3}

    tls = tls_files("control", certificate, key)
    server = ControlServer(app, bind(ControlSettings(port=0)), tls)
    server.start()
    host, port = server.address
    try:
        yield publish_record(layout, "daemon", host, port, tls.digest if tls else None)
    finally:
        server.stop()


def test_clients_follow_https(files, make_settings, layout):
    heard: list[str] = []
    with secure_server(layout, *files, heard) as address:
        assert ControlClient(make_settings(), layout).running_round() == 7
        plane = probe_plane(address)
        assert plane.up and plane.version == 3, plane.detail
        url = f"{address.host}:{address.port}/v1/rounds"
        assert httpx.get(f"https://{url}", verify=_trusting(files[0]), trust_env=False).json()["running"] == 7
        with pytest.raises(httpx.TransportError):
            httpx.get(f"http://{url}", trust_env=False)
    assert len(heard) == 3


def _trusting(certificate: Path) -> ssl.SSLContext:
    """A foreign client that was given the certificate, as an operator would."""
    context = ssl.create_default_context(cafile=str(certificate))
    context.check_hostname = False
    return context


def test_another_certificate_at_that_port_hears_nothing(files, make_settings, layout, tmp_path):
    """Its certificate is not the one in the run file: the token must not reach it."""
    heard: list[str] = []
    other = tls_files("control", *self_signed(tmp_path, "other"))
    with secure_server(layout, *files, heard) as address:
        wrong = address.model_copy(update={"certificate": other.digest})
        layout.run_file("daemon").write_text(wrong.model_dump_json())
        with pytest.raises(ControlFailed, match="another certificate"):
            ControlClient(make_settings(), layout).running_round()
        plane = probe_plane(wrong)
        assert not plane.up and "another certificate" in plane.detail
    assert not heard


def test_a_plain_server_where_tls_is_expected_is_an_error_that_says_so(layout):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = publish_record(layout, "daemon", "127.0.0.1", listener.getsockname()[1], "0" * 64)

        def answer_plainly() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")

        thread = threading.Thread(target=answer_plainly)
        thread.start()
        with pytest.raises(OSError):
            ask(address, "GET", "/healthz", {"Authorization": "Bearer x"}, 10.0)
        thread.join(10)
        assert not thread.is_alive()


def test_files_that_cannot_be_used_are_told_before_anything_listens(files, tmp_path):
    certificate, key = files
    _, other_key = self_signed(tmp_path, "other")
    rubbish = tmp_path / "rubbish"
    rubbish.write_text("rubbish")
    for one, two, says in (
        (tmp_path / "none", key, r"control\.certificate: .*none cannot be read"),
        (certificate, tmp_path / "none", r"control\.key: .*none cannot be read"),
        (certificate, other_key, "cannot be used together"),
        (rubbish, key, "cannot be used together"),
        (certificate, rubbish, "cannot be used together"),
    ):
        with pytest.raises(ConfigError, match=says):
            tls_files("control", one, two)
    assert tls_files("control", None, None) is None


def test_a_key_with_a_password_is_refused_and_asks_nobody(files, tmp_path):
    certificate, key = files
    locked = tmp_path / "locked.key"
    command = ["openssl", "pkey", "-in", str(key), "-aes256", "-passout", "pass:secret", "-out", str(locked)]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    with pytest.raises(ConfigError, match="without a password"):
        tls_files("serving", certificate, locked)


@pytest.mark.parametrize("given", [{"certificate": "a"}, {"key": "a"}])
@pytest.mark.parametrize("section", ["control", "serving"])
def test_certificate_and_key_go_together(make_settings, section, given):
    with pytest.raises(ValueError, match=f"{section}.certificate and {section}.key go together"):
        make_settings(**{section: given})
