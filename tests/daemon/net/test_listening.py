"""Where the planes may listen: on loopback freely, elsewhere only guarded, and never where a name turns out to lead."""

import socket

import pytest

from configs.errors import ConfigError
from daemon.control.server import bind
from daemon.errors import AddressInUse
from daemon.net.listening import is_loopback, listen
from daemon.net.token import control_address, serving_address
from daemon.serving.server import serve

PUBLIC = ["0.0.0.0", "::", "0", "192.168.1.5", "8.8.8.8", "2001:db8::1", "fe80::1", "::ffff:8.8.8.8", "169.254.1.1"]
LOOPBACK = ["127.0.0.1", "localhost", "127.9.9.9", "127.1", "::1", "::ffff:127.0.0.1"]


def stands_for(monkeypatch: pytest.MonkeyPatch, *answers: list[str]) -> list[str]:
    """Let every name stand for the first answer, asked again for the second...; what was asked for."""
    real, asked = socket.getaddrinfo, []

    def look_up(host, port, **options):
        found = answers[min(len(asked), len(answers) - 1)]
        asked.append(host)
        return [entry for address in found for entry in real(address, port, **options)]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    return asked


@pytest.mark.parametrize("host", PUBLIC)
def test_a_public_address_without_a_token_is_refused_by_both_planes(make_settings, host):
    settings = make_settings(control={"host": host}, serving={"host": host})
    with pytest.raises(ConfigError, match=r"control\.host: .*reached from outside.*token_file"):
        bind(settings.control)
    with pytest.raises(ConfigError, match=r"serving\.host: .*reached from outside.*serving\.advanced\.public"):
        serve(settings)


def test_a_guarded_public_address_is_bound(make_settings, tmp_path):
    for section in ({"token": "x"}, {"token_file": tmp_path / "token"}):
        with bind(make_settings(control={"host": "0.0.0.0", **section}).control) as listener:
            assert listener.getsockname()[0] == "0.0.0.0"
        with listen(serving_address(make_settings(serving={"host": "0.0.0.0", **section}).serving), 1) as listener:
            assert listener.getsockname()[0] == "0.0.0.0"
    with listen(
        serving_address(make_settings(serving={"host": "0.0.0.0", "advanced": {"public": True}}).serving), 1
    ) as listener:
        assert listener.getsockname()[0] == "0.0.0.0"


def test_the_default_is_loopback(make_settings):
    for wanted in (control_address(make_settings().control), serving_address(make_settings().serving)):
        with listen(wanted, 1) as listener:
            assert listener.getsockname()[0] == "127.0.0.1"


def test_connections_send_at_once(make_settings):
    with (
        listen(serving_address(make_settings().serving), 1) as listener,
        socket.create_connection(listener.getsockname()[:2]),
        listener.accept()[0] as connection,
    ):
        assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1


@pytest.mark.parametrize("answers", [["203.0.113.7"], ["2001:db8::7"], ["127.0.0.1", "203.0.113.7"]])
def test_a_name_that_leads_outside_is_refused(make_settings, monkeypatch, answers):
    stands_for(monkeypatch, answers)
    assert not is_loopback("camera.example")
    with pytest.raises(ConfigError, match=r"control\.host: camera\.example \("):
        bind(make_settings(control={"host": "camera.example"}).control)


def test_the_address_that_was_judged_is_the_one_that_is_bound(make_settings, monkeypatch):
    asked = stands_for(monkeypatch, ["127.0.0.1"], ["0.0.0.0"])
    with bind(make_settings(control={"host": "camera.example"}).control) as listener:
        assert listener.getsockname()[0] == "127.0.0.1"
    assert asked == ["camera.example"]


def test_names_that_lead_nowhere_say_so(make_settings):
    for host in ("no-such-host.invalid", "a..b", "x" * 300):
        with pytest.raises(AddressInUse, match="cannot bind"):
            bind(make_settings(control={"host": host}).control)
        assert not is_loopback(host)


def test_loopback_addresses():
    assert all(map(is_loopback, LOOPBACK))
    assert not any(map(is_loopback, [*PUBLIC, "localhost.example.invalid"]))
