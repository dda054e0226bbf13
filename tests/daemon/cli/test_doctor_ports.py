"""`mfmd doctor` on ports, tokens, keys and certificates."""

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from configs.settings import Settings
from daemon.control.state_metrics import StateCollector
from daemon.doctor import Level
from daemon.doctor.ports import examine_ports
from daemon.net import certificates
from daemon.net.certificates import first_end
from daemon.runtime.run_record import publish_record
from daemon.status.collect import collect_status
from storage.buffer.catalog import Catalog
from storage.layout import StateLayout
from tests.daemon.certificates import self_signed
from tests.daemon.cli.test_cli_doctor import by_name, with_values


@contextmanager
def _listener() -> Iterator[int]:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield server.getsockname()[1]


def test_port_held_by_somebody_else(settings: Settings) -> None:
    with _listener() as port:
        findings = by_name(examine_ports(with_values(settings, "serving", port=port)))
    assert findings["serving_port"].level == Level.FAIL and str(port) in findings["serving_port"].detail
    assert findings["control_port"].level == Level.OK


def test_port_held_by_our_own_daemon(settings: Settings) -> None:
    layout = StateLayout(settings.state)
    with _listener() as port:
        record = publish_record(layout, "serve", "127.0.0.1", port)
        busy = with_values(settings, "serving", port=port)
        assert by_name(examine_ports(busy))["serving_port"].level == Level.OK
        gone = record.model_copy(update={"pid": 2**22 + 1})
        layout.run_file("serve").write_text(gone.model_dump_json(), encoding="utf-8")
        assert by_name(examine_ports(busy))["serving_port"].level == Level.FAIL, "its process is gone"


def test_public_control_plane_needs_a_token(settings: Settings, tmp_path: Path) -> None:
    public = with_values(settings, "control", host="0.0.0.0")
    assert by_name(examine_ports(public))["control_token"].level == Level.FAIL
    token = tmp_path / "token"
    with_file = with_values(public, "control", token_file=token)
    assert by_name(examine_ports(with_file))["control_token"].level == Level.FAIL
    token.write_text("secret", encoding="utf-8")
    token.chmod(0o600)
    assert by_name(examine_ports(with_file))["control_token"].level == Level.OK


@pytest.mark.parametrize("mode", [0o600, 0o400, 0o640, 0o644, 0o666, 0o660, 0o602])
@pytest.mark.parametrize("where", ["own", "control", "serving", "tls"])
def test_a_secret_that_others_can_read_is_named(settings: Settings, tmp_path: Path, where: str, mode: int) -> None:
    layout = StateLayout(settings.state)
    layout.create()
    name, secret = {
        "own": ("control_token", layout.token_file),
        "control": ("control_token", tmp_path / "secret"),
        "serving": ("serving_token", tmp_path / "secret"),
        "tls": ("serving_tls", tmp_path / "key.pem"),
    }[where]
    if where == "tls":
        certificate, secret = self_signed(tmp_path)
        settings = with_values(settings, "serving", certificate=certificate, key=secret)
    else:
        secret.write_text("secret\n")
        settings = settings if where == "own" else with_values(settings, where, token_file=secret)
    secret.chmod(mode)
    finding = by_name(examine_ports(settings))[name]
    assert (finding.level is Level.OK) == (mode in (0o600, 0o400, 0o640))
    assert finding.level is Level.OK or f"{secret} has mode {mode:04o}" in finding.detail


def test_a_secret_in_a_folder_that_others_can_write_to_is_named(settings: Settings, tmp_path: Path) -> None:
    folder = tmp_path / "open" / "inner"
    folder.mkdir(parents=True)
    secret = folder / "secret"
    secret.write_text("secret\n")
    secret.chmod(0o600)
    folder.parent.chmod(0o777)
    found = by_name(examine_ports(with_values(settings, "serving", token_file=secret)))["serving_token"]
    assert found.level is Level.WARN and f"{folder.parent} has mode 0777" in found.detail
    folder.parent.chmod(0o1777)
    found = by_name(examine_ports(with_values(settings, "serving", token_file=secret)))["serving_token"]
    assert found.level is Level.OK, "as in /tmp"


def test_the_token_of_a_running_daemon_is_not_missed(settings: Settings) -> None:
    """The settings in force, which the doctor reads, do not hold it."""
    publish_record(StateLayout(settings.state), "daemon", "0.0.0.0", 8008)
    findings = by_name(examine_ports(with_values(settings, "control", host="0.0.0.0")))
    assert findings["control_token"].level == Level.OK


def test_public_inference_plane_needs_a_token_or_to_be_meant(settings: Settings) -> None:
    public = with_values(settings, "serving", host="0.0.0.0")
    finding = by_name(examine_ports(public))["serving_token"]
    assert finding.level == Level.FAIL and "serving.advanced.public" in finding.remedy
    assert by_name(examine_ports(with_values(public, "serving", public=True)))["serving_token"].level == Level.OK
    assert by_name(examine_ports(settings))["serving_token"].level == Level.OK


def _metric(settings: Settings, name: str) -> dict[str, float]:
    catalog = Catalog(StateLayout(settings.state).catalog, writable=True, broken="not of interest here")
    (found,) = [metric for metric in StateCollector(settings, catalog, list).collect() if metric.name == name]
    return {next(iter(sample.labels.values())): sample.value for sample in found.samples}


@pytest.mark.parametrize(("days", "said"), [(10, "ends in 10 days"), (30, ""), (12_000, "")])
def test_a_certificate_that_ends_soon_and_an_exposed_key_are_told(
    settings: Settings, tmp_path: Path, days: int, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate, key = self_signed(tmp_path, days=days)
    secure = with_values(settings, "serving", certificate=certificate, key=key)
    end = first_end(certificate)
    assert end is not None and abs(end - time.time() - 86_400 * days) < 60, "years after 2049 are written otherwise"
    for level, words in ((Level.WARN, said), (Level.WARN, "ended 3 days ago")):
        found = by_name(examine_ports(secure)).get("serving_certificate")
        assert (found is None and not words) or (found is not None and found.level == level and words in found.detail)
        told = [message for message in collect_status(secure).messages if str(certificate) in message]
        assert len(told) == bool(words) and all("renew it" in message for message in told)
        monkeypatch.setattr(certificates.time, "time", lambda: end + 3 * 86_400)
    key.chmod(0o644)
    assert by_name(examine_ports(secure))["serving_tls"].level == Level.WARN
    told = [message for message in collect_status(secure).messages if f"{key} has mode 0644" in message]
    assert len(told) == 1 and "chmod 600" in told[0]
    assert _metric(secure, "mfmd_secret_exposed") == {
        "control_token": 0,
        "control_key": 0,
        "serving_token": 0,
        "serving_key": 1,
    }
    assert _metric(secure, "mfmd_certificate_end_timestamp_seconds") == {"control": 0, "serving": end}


def test_certificates_are_tried(settings: Settings, tmp_path: Path) -> None:
    assert "serving_tls" not in by_name(examine_ports(settings))
    certificate, key = self_signed(tmp_path)
    secure = with_values(settings, "serving", certificate=certificate, key=key)
    assert by_name(examine_ports(secure))["serving_tls"].level == Level.OK
    key.write_text("rubbish")
    assert by_name(examine_ports(secure))["serving_tls"].level == Level.FAIL
