"""Bodies that the control plane reads: late, large, of another type, or no text."""

import json
import socket
import tracemalloc

import pytest

from daemon.control.server import MOST_BYTES
from tests.daemon.control.control_world import AUTHORISED, CHANGES, JSON, TOKEN


def test_a_body_is_not_read_before_the_token_is_seen_and_not_on_without_end(world):
    json = {"Content-Type": "application/json"}
    for path in CHANGES[2:]:
        assert world.client.post(path, content=b"{", headers=json).status_code == 401, "not what is wrong with its body"
    answer = world.client.post("/v1/rollback", content=(b" " * 1_000_000 for _ in range(9)), headers=json | AUTHORISED)
    assert (answer.status_code, answer.json()["code"]) == (413, "body_too_large")
    tracemalloc.start()
    try:
        answer = world.client.post("/v1/rollback", content=(b" " * 1_000_000 for _ in range(50)), headers=json)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert answer.status_code == 401
    assert peak < 20_000_000, "50 MB of somebody without a token are nowhere"


@pytest.mark.parametrize("declared", [10**18, MOST_BYTES + 1])
@pytest.mark.parametrize("path", ["/v1/rollback", "/v1/rounds", "/rollback", "/v1/status"])
def test_a_body_declared_too_large_is_refused_before_it_arrives(world, declared: int, path: str) -> None:
    with socket.create_connection(world.server.address, timeout=10) as connection:
        head = f"POST {path} HTTP/1.1\r\nAuthorization: Bearer {TOKEN}\r\nContent-Length: {declared}\r\n\r\n"
        connection.sendall(head.encode())
        assert connection.recv(1000).startswith(b"HTTP/1.1 413")


@pytest.mark.parametrize(("names", "status"), [(20_000, 422), (100_000, 413)])
def test_a_body_of_many_short_names_is_refused_before_they_are_made(world, names: int, status: int) -> None:
    body = b'{"paths": [%s], "reason": 7}' % b",".join(b'"%x"' % number for number in range(4096, 4096 + names))
    answer = world.client.post("/v1/refused/retry", headers=AUTHORISED | JSON, content=body)
    assert (answer.status_code, answer.json()["code"]) == (
        status,
        "body_too_large" if status == 413 else "invalid_request",
    )


@pytest.mark.parametrize("path", ["/v1/rollback", "/rollback"])
def test_a_client_that_leaves_before_its_body_arrived_is_no_failure(world, caplog, path: str) -> None:
    began = f"POST {path} HTTP/1.1\r\nAuthorization: Bearer {TOKEN}\r\nContent-Length: 9\r\n\r\n{{"
    with socket.create_connection((world.client.base_url.host, world.client.base_url.port)) as client:
        client.sendall(began.encode())
        client.shutdown(socket.SHUT_WR)
        assert client.recv(1000) == b""
    world.server.stop()  # after the request
    assert not [record for record in caplog.records if record.exc_info]


def test_a_late_body_is_refused(world, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("daemon.control.server.BODY_SECONDS", 0.2)
    for path in ("/v1/rollback", "/rollback"):
        with socket.create_connection(world.server.address, timeout=10) as connection:
            head = f"POST {path} HTTP/1.1\r\nAuthorization: Bearer {TOKEN}\r\nContent-Length: 9\r\n\r\n{{"
            connection.sendall(head.encode())
            assert connection.recv(1000).startswith(b"HTTP/1.1 408")


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/rollback", {"to": True}),
        ("/v1/rollback", {"to": "1"}),
        ("/v1/rollback", {"to": 1.0}),
        ("/v1/rollback", {"expected": True}),
        ("/v1/rollback", {"to": 1, "reason": None}),
        ("/v1/rollback", [1]),
        ("/v1/promote", {"version": True}),
        ("/v1/promote", {"version": "2"}),
        ("/v1/promote", {"version": 0}),
        ("/v1/promote", None),
        ("/v1/checkpoints/1/pin", {"reason": 7}),
        ("/v1/refused/retry", {"path": ["a.png"]}),
        ("/v1/refused/retry", {"paths": "a.png"}),
        ("/v1/refused/retry", {"paths": [{}] * 1000}),
        ("/v1/refused/retry", None),
    ],
    ids=str,
)
def test_a_value_of_another_type_is_refused_and_nothing_moves(world, registry, add_version, path, body) -> None:
    add_version(parent=1)
    before = registry.history()
    answer = world.client.post(path, headers=AUTHORISED | JSON, content=json.dumps(body))
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request"), answer.text
    assert registry.history() == before and registry.serving().version == 2


@pytest.mark.parametrize(
    ("reason", "code"),
    [
        ("\ud800", "invalid_request"),  # JSON itself forbids half a character
        ("a\x00b", "reason_invalid"),
        ("\x1b[2J", "reason_invalid"),
        ("x" * 2001, "reason_invalid"),
    ],
    ids=["half", "nul", "escape", "long"],
)
def test_a_reason_that_is_no_text_is_refused_and_nothing_moves(world, registry, add_version, reason, code):
    add_version(parent=1)
    before = registry.history()
    for path, more in (("/v1/rollback", {}), ("/v1/promote", {"version": 1}), ("/v1/checkpoints/1/pin", {})):
        answer = world.client.post(path, headers=AUTHORISED | JSON, content=json.dumps({"reason": reason} | more))
        assert (answer.status_code, answer.json()["code"]) == (422, code), answer.text
    assert registry.history() == before and registry.serving().version == 2


def test_half_a_character_in_a_name_is_the_clients_error(world):
    answer = world.client.post("/v1/rollback", headers=AUTHORISED | JSON, content=b'{"\\ud800": 1}')
    assert answer.status_code == 422, answer.text


@pytest.mark.parametrize("body", [b'{"paths": ["\\ud800"]}', b'{"reason": "\\ud800"}'])
def test_half_a_character_is_the_name_of_no_refused_file(world, body):
    answer = world.client.post("/v1/refused/retry", headers=AUTHORISED | JSON, content=body)
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")
