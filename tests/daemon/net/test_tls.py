"""Planes over TLS: clients with the certificate are answered, and bad files are reported at once."""

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
from daemon.control.server import ControlServer, bind
from daemon.net.listening import tls_files
from daemon.runtime.run_record import RunRecord, publish_record
from daemon.status.plane_probe import probe_plane
from storage.layout import StateLayout
from tests.daemon.certificates import self_signed


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    return self_signed(tmp_path)


@contextmanager
def secure_server(layout: StateLayout, certificate: Path, key: Path) -> Iterator[RunRecord]:
    """A server over TLS with one route, on record as an inference plane."""
    app = FastAPI()

    @app.get("/v1/serving")
    def serving() -> dict[str, object]:
        return {"ready": True, "version": 3}

    server = ControlServer(app, bind(ControlSettings(port=0)), tls_files("control", certificate, key))
    server.start()
    try:
        yield publish_record(layout, "serve", *server.address, tls=True)
    finally:
        server.stop()


def test_clients_with_the_certificate_and_the_daemon_itself_are_answered(files, layout):
    with secure_server(layout, *files) as record:
        plane = probe_plane(record)
        assert plane.up and plane.version == 3, plane.detail
        url = f"{record.host}:{record.port}/v1/serving"
        assert httpx.get(f"https://{url}", verify=_trusting(files[0]), trust_env=False).json()["version"] == 3
        with pytest.raises(httpx.TransportError):
            httpx.get(f"http://{url}", trust_env=False)
        assert not probe_plane(record.model_copy(update={"tls": False})).up


def _trusting(certificate: Path) -> ssl.SSLContext:
    """A foreign client that was given the certificate, as an operator would."""
    context = ssl.create_default_context(cafile=str(certificate))
    context.check_hostname = False
    return context


def test_a_plain_server_where_tls_is_expected_does_not_answer(layout):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        record = publish_record(layout, "serve", "127.0.0.1", listener.getsockname()[1], tls=True)

        def answer_plainly() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")

        thread = threading.Thread(target=answer_plainly)
        thread.start()
        assert not probe_plane(record).up
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
