"""The control API on a real socket: open to look at, closed to change, every error with a code."""

import json
import math
import socket
import threading
import tracemalloc
from collections.abc import Iterator
from types import SimpleNamespace

import httpx
import pytest

from daemon.control.app import ControlContext, create_control_app
from daemon.control.client import ControlClient, ControlFailed, NoDaemon
from daemon.control.server import MOST_BYTES, ControlServer, bind
from daemon.control.state_metrics import StateCollector
from daemon.errors import AddressInUse, Stopping
from daemon.metrics import Metrics
from daemon.rounds.loop import RoundLoop
from daemon.runtime.activity import ChildActivity
from daemon.runtime.health import Health
from daemon.runtime.in_force import SettingsInForce
from daemon.runtime.run_record import publish_record
from daemon.runtime.worker import Worker
from storage.registry.manifest import HistoryEvent
from storage.rounds.folder import RoundStore
from storage.rounds.records import RoundScores, RoundSpec
from tests.daemon.running import serving_locally

TOKEN = "correct horse"


@pytest.fixture
def world(bench, registry, layout, add_version, drop, write_image) -> Iterator[SimpleNamespace]:
    """A control server on a state directory with version 1 serving and six frames."""
    add_version()
    made = bench()
    for number in range(6):
        write_image(drop / f"{number}.png", number)
    made.until(lambda: made.counts.frames == 6)
    settings, metrics = made.settings, Metrics(made.settings)
    in_force = SettingsInForce(settings, layout.root / "mfmd.yaml")
    rounds = RoundLoop(settings, made.buffer, registry, metrics.rounds)
    parts = [Worker("ingest", lambda: 0.05, metrics.process), Worker("rounds", lambda: 0.05, metrics.process)]
    children: list[ChildActivity] = []
    health = Health(parts, registry, lambda: children)
    metrics.registry.register(StateCollector(settings, made.buffer.catalog, list))
    context = ControlContext(in_force, registry, rounds, metrics, health, TOKEN, made.ingest.retries)
    app = create_control_app(context)
    server = ControlServer(app, bind(settings.control))
    for part in parts:
        part.start()
    server.start()
    host, port = server.address
    with httpx.Client(base_url=f"http://{host}:{port}", trust_env=False) as client:
        yield SimpleNamespace(
            client=client,
            children=children,
            app=app,
            local_app=create_control_app(context, local=True),
            parts=parts,
            rounds=rounds,
            server=server,
            settings=settings,
            bench=made,
        )
    server.stop()
    for part in parts:
        part.ask_to_stop()
        part.join()


AUTHORISED = {"Authorization": f"Bearer {TOKEN}"}
JSON = {"Content-Type": "application/json"}
CHANGES = ["/v1/rounds", "/v1/reload", "/v1/rollback", "/v1/promote", "/v1/checkpoints/1/pin"]
CHANGES += ["/v1/checkpoints/1/unpin", "/v1/refused/retry"]


WRONG = [None, "Bearer wrong", f"Basic {TOKEN}", "Bearer", f"Bearer {TOKEN}x", "Bearer é".encode("latin-1")]


def test_a_change_needs_the_token(world, registry):
    before = registry.history()
    for path in CHANGES:
        for given in WRONG:
            answer = world.client.post(path, headers={} if given is None else {"Authorization": given})
            assert answer.status_code == 401, (path, given)
            assert answer.headers["WWW-Authenticate"] == "Bearer"
            assert answer.json()["code"] == "unauthorized"
    assert registry.history() == before
    assert world.rounds.running is None


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


def test_a_number_that_no_disk_could_name_is_refused(world):
    for number in ("9" * 10, "9" * 300):
        for answer in (
            world.client.get(f"/v1/rounds/{number}"),
            world.client.post(f"/v1/checkpoints/{number}/pin", headers=AUTHORISED),
            world.client.post("/v1/rollback", headers=AUTHORISED, content=f'{{"to": {number}}}'),
        ):
            assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")


def test_a_stopping_daemon_says_so_to_a_command_that_wants_a_round(world, layout):
    record = publish_record(layout, "daemon", *world.server.address)
    with serving_locally(world.local_app, layout):
        client = ControlClient(layout)
        assert client.problems() == [] and client.running_round() is None and not client.left
        world.rounds.stop()
        with pytest.raises(Stopping, match="is stopping and starts no round; retry when it runs"):
            client.start_round()
    with pytest.raises(NoDaemon, match="mfmd run"):  # a kill leaves the record behind
        client.running_round()
    with layout.lock(), pytest.raises(ControlFailed, match="the daemon does not answer"):
        client.running_round()
    layout.run_file("daemon").unlink(missing_ok=True)  # the lock's end removes it, too
    assert client.left and not client.replaced
    layout.run_file("daemon").write_text(record.model_copy(update={"pid": 1}).model_dump_json())
    assert client.left and client.replaced, "another start, perhaps at the same port"


def test_whatever_is_not_a_look_needs_the_token(world):
    """Also routes that are added later."""
    paths = world.app.openapi()["paths"]
    changing = [(method, path) for path in paths for method in paths[path] if method not in ("get", "head", "options")]
    assert len(changing) >= len(CHANGES)
    for method, path in changing:
        answer = world.client.request(method, path.replace("{version}", "1"))
        assert answer.status_code in (401, 403), (method, path)


def test_looking_needs_none(world):
    for path in ("/healthz", "/readyz", "/metrics", "/v1/status", "/v1/checkpoints", "/v1/rounds"):
        assert world.client.get(path).status_code == 200, path


def test_head_is_answered_like_get_without_the_body_and_changes_nothing(world, registry):
    for path in ("/healthz", "/readyz", "/v1/status", "/"):
        asked, looked = world.client.get(path), world.client.head(path)
        assert (looked.status_code, looked.content) == (asked.status_code, b""), path
    before = registry.history()
    assert world.client.head("/v1/rollback").status_code == 405
    assert registry.history() == before


def test_status_is_the_picture_that_the_command_prints(world):
    status = world.client.get("/v1/status").json()
    assert status["buffer"]["frames"] == 6
    assert status["serving"]["version"] == 1
    assert status["messages"]


def test_rollback_goes_to_the_version_before_and_is_in_the_history(world, registry, add_version):
    add_version(parent=1)
    answer = world.client.post("/v1/rollback", headers=AUTHORISED, json={"reason": "it hallucinates buses"})
    assert (answer.status_code, answer.json()["version"]) == (200, 1)
    assert registry.serving().version == 1
    last = registry.history()[-1]
    assert (last.event, last.by, last.reason) == ("rolled_back", "operator", "it hallucinates buses")


def test_a_rollback_that_is_asked_for_again_goes_no_further_back(world, registry, add_version):
    add_version(parent=1)
    add_version(parent=2)
    wanted = {"expected": 3}
    assert world.client.post("/v1/rollback", headers=AUTHORISED, json=wanted).json()["version"] == 2
    again = world.client.post("/v1/rollback", headers=AUTHORISED, json=wanted)
    assert (again.status_code, again.json()["code"]) == (409, "serving_changed")
    assert registry.serving().version == 2


def test_a_version_served_by_hand_is_no_rollback(world, registry, add_version):
    add_version(parent=1, promote=False)
    wanted = {"version": 2, "expected": 1, "reason": "trained on the new camera"}
    answer = world.client.post("/v1/promote", headers=AUTHORISED, json=wanted)
    assert (answer.status_code, answer.json()["version"]) == (200, 2)
    last = registry.history()[-1]
    assert (last.event, last.by, last.reason) == ("promoted", "operator", "trained on the new camera")
    again = world.client.post("/v1/promote", headers=AUTHORISED, json=wanted)
    assert (again.status_code, again.json()["code"]) == (409, "serving_changed")
    assert world.client.post("/v1/rollback", headers=AUTHORISED).json()["version"] == 1
    forward = world.client.post("/v1/rollback", headers=AUTHORISED, json={"to": 2})
    assert (forward.status_code, forward.json()["code"]) == (409, "version_not_earlier")


@pytest.mark.parametrize("declared", [10**18, MOST_BYTES + 1])
@pytest.mark.parametrize("path", ["/v1/rollback", "/v1/rounds", "/rollback", "/v1/status"])
def test_a_body_declared_too_large_is_refused_before_it_arrives(world, declared: int, path: str) -> None:
    with socket.create_connection(world.server.address, timeout=10) as connection:
        head = f"POST {path} HTTP/1.1\r\nAuthorization: Bearer {TOKEN}\r\nContent-Length: {declared}\r\n\r\n"
        connection.sendall(head.encode())
        assert connection.recv(1000).startswith(b"HTTP/1.1 413")


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


@pytest.mark.parametrize("reason", ["\ud800", "a\x00b", "\x1b[2J", "x" * 2001], ids=["half", "nul", "escape", "long"])
def test_a_reason_that_is_no_text_is_refused_and_nothing_moves(world, registry, add_version, reason):
    add_version(parent=1)
    before = registry.history()
    for path, more in (("/v1/rollback", {}), ("/v1/promote", {"version": 1}), ("/v1/checkpoints/1/pin", {})):
        answer = world.client.post(path, headers=AUTHORISED | JSON, content=json.dumps({"reason": reason} | more))
        assert answer.status_code == 422, answer.text
        assert answer.json()["code"] in ("reason_invalid", "invalid_request"), answer.text  # JSON itself forbids half
    assert registry.history() == before and registry.serving().version == 2


def test_half_a_character_in_a_name_is_the_clients_error(world):
    answer = world.client.post("/v1/rollback", headers=AUTHORISED | JSON, content=b'{"\\ud800": 1}')
    assert answer.status_code == 422, answer.text


def test_rollback_without_a_body_works_and_without_a_target_says_so(world):
    answer = world.client.post("/v1/rollback", headers=AUTHORISED)
    assert answer.status_code == 404
    assert answer.json()["code"] == "version_unknown"
    assert "nothing to roll back to" in answer.json()["message"]


def test_errors_have_codes(world):
    post, get = world.client.post, world.client.get
    cases = [
        (post("/v1/rollback", headers=AUTHORISED, json={"to": 77}), 404, "version_unknown"),
        (post("/v1/rollback", headers=AUTHORISED, json={"to": 1}), 409, "storage"),
        (post("/v1/rollback", headers=AUTHORISED, json={"too": 1}), 422, "invalid_request"),
        (post("/v1/rollback", headers=AUTHORISED, content=b"{"), 422, "invalid_request"),
        (post("/v1/promote", headers=AUTHORISED, json={"version": 77}), 404, "version_unknown"),
        (post("/v1/promote", headers=AUTHORISED, json={"version": 1}), 409, "storage"),
        (post("/v1/promote", headers=AUTHORISED, json={}), 422, "invalid_request"),
        (post("/v1/checkpoints/9/pin", headers=AUTHORISED), 404, "version_unknown"),
        (post("/v1/checkpoints/1/unpin", headers=AUTHORISED), 404, "version_unknown"),
        (get("/v1/rounds/3"), 404, "round_unknown"),
        (get("/v1/rounds?limit=0"), 422, "invalid_request"),
        (get("/nowhere"), 404, "not_found"),
    ]
    for answer, status, code in cases:
        assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text
        assert answer.json()["message"]


def test_pin_and_unpin(world, registry):
    assert world.client.post("/v1/checkpoints/1/pin", headers=AUTHORISED).json() == {"pinned": [1]}
    assert world.client.get("/v1/checkpoints").json()["versions"][0]["pinned"] is True
    assert world.client.post("/v1/checkpoints/1/unpin", headers=AUTHORISED, json={"reason": "old"}).json() == {
        "pinned": []
    }


def test_a_damaged_version_is_listed_as_such(world, registry):
    (registry.root / "versions" / "000001" / "manifest.json").write_text("{")
    (version,) = world.client.get("/v1/checkpoints").json()["versions"]
    assert "not a manifest" in version["damaged"]


@pytest.mark.parametrize("damage", ["garbage", None])
def test_a_serving_ref_that_is_damaged_or_gone_hides_no_version(world, registry, damage):
    path = registry.ref_path("serving")
    path.unlink() if damage is None else path.write_text(damage)
    answer = world.client.get("/v1/checkpoints")
    told = answer.json()
    assert (answer.status_code, told["serving"], [item["version"] for item in told["versions"]]) == (200, None, [1])
    assert ["refs/serving" in text for text in told["damaged"]] == [True]


def test_versions_that_never_served_are_marked(world, registry, add_version):
    add_version(1, promote=False)
    registry.record(HistoryEvent(at=1.0, event="rejected", version=2, previous=1, by="gate", reason="odd"))
    versions = world.client.get("/v1/checkpoints").json()["versions"]
    assert [(item["version"], item["marks"]) for item in versions] == [(1, []), (2, ["never served", "rejected"])]


def test_a_round_is_accepted_once(world):
    answer = world.client.post("/v1/rounds", headers=AUTHORISED)
    assert (answer.status_code, answer.json()) == (202, {"round": 1})
    again = world.client.post("/v1/rounds", headers=AUTHORISED)
    assert (again.status_code, again.json()["code"]) == (409, "round_running")
    assert world.client.get("/v1/rounds").json()["running"] == 1


def test_too_few_frames_are_no_round(world, registry, tmp_path):
    world.rounds.settings = world.settings.model_copy(
        update={"schedule": world.settings.schedule.model_copy(update={"min_frames": 100})}
    )
    answer = world.client.post("/v1/rounds", headers=AUTHORISED)
    assert (answer.status_code, answer.json()["code"]) == (409, "not_enough_frames")


def test_a_round_can_be_looked_at(world, layout):
    folder = RoundStore(layout.rounds).create(
        RoundSpec(
            round=1, incumbent=1, released=1, train_frames=(1,), holdout_frames=(2,), settings={}, created=5.0,
            trigger="manual",
        )
    )  # fmt: skip
    folder.write_scores(RoundScores(status="failed", reason="non-finite loss", steps=3, seconds=9.0))
    folder.enter("failed")
    detail = world.client.get("/v1/rounds/1").json()
    assert (detail["summary"]["result"], detail["summary"]["seconds"], detail["verdict"]) == ("failed", 9.0, None)
    assert detail["summary"]["stage"] == "failed"
    assert [item["round"] for item in world.client.get("/v1/rounds").json()["rounds"]] == [1]


def test_live_and_ready_are_different_questions(world, registry):
    registry.ref_path("serving").unlink()
    assert world.client.get("/healthz").status_code == 200
    answer = world.client.get("/readyz")
    assert answer.status_code == 503 and "missing, but version 1" in answer.json()["problems"][0]
    (registry.root / "history.jsonl").unlink()
    assert world.client.get("/readyz").json()["problems"] == ["no version serves"]


def test_a_child_that_is_down_makes_the_daemon_not_ready(world):
    world.children.append(ChildActivity(name="serve", running=False, problem="does not run"))
    assert world.client.get("/healthz").status_code == 200
    answer = world.client.get("/readyz")
    assert (answer.status_code, answer.json()["problems"]) == (503, ["`mfmd serve` does not run"])


def test_a_thread_that_ended_by_itself_is_not_alive(world, wait_until):
    world.parts[0].ask_to_stop()
    wait_until(lambda: not world.parts[0].alive)
    answer = world.client.get("/healthz")
    assert answer.status_code == 503
    assert answer.json()["problems"][0].startswith("ingest: no step finished")


def test_a_stuck_step_is_noticed_but_a_long_round_is_none(world):
    end, meter = threading.Event(), world.bench.metrics.process
    for name, limit in (("publish", 0.0), ("rounds", math.inf)):
        world.parts.append(Worker(name, lambda: end.wait() or 0.05, meter, stuck_seconds=limit))
        world.parts[-1].start()
    problems = world.client.get("/healthz").json()["problems"]
    end.set()
    assert [problem.split(":")[0] for problem in problems] == ["publish"]


def test_a_taken_port_is_told(make_settings):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(AddressInUse, match=f"control.port {port}"):
            bind(make_settings(control={"port": port}).control)


def test_stop_closes_the_port(world):
    host, port = world.server.address
    world.server.stop()
    assert not world.server.alive
    with pytest.raises(OSError):
        socket.create_connection((host, port), timeout=1).close()


def test_many_threads_ask_at_once(world):
    answers = []

    def ask() -> None:
        answers.extend(world.client.get(path).status_code for path in ("/v1/status", "/metrics", "/v1/rounds"))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [200] * 24


def test_refused_files_are_tried_again_by_ingest(world, drop):
    (drop / "bad.png").write_text("no image")
    world.bench.until(lambda: world.bench.counts.refused == {"not_an_image": 1})
    answer = _retried(world, b'{"paths": ["bad.png", "other.png"]}')
    assert (answer.status_code, answer.json()) == (200, {"retried": ["bad.png"]})
    world.bench.until(lambda: world.bench.value("mfmd_ingest_rejected_total", reason="not_an_image") == 2)


@pytest.mark.parametrize("body", [b'{"paths": ["\\ud800"]}', b'{"reason": "\\ud800"}'])
def test_half_a_character_is_the_name_of_no_refused_file(world, body):
    answer = world.client.post("/v1/refused/retry", headers=AUTHORISED | JSON, content=body)
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")


def _retried(world, body: bytes) -> httpx.Response:
    """The answer of ingest, which runs meanwhile."""
    answers: list[httpx.Response] = []

    def ask() -> None:
        answers.append(world.client.post("/v1/refused/retry", headers=AUTHORISED | JSON, content=body))

    asker = threading.Thread(target=ask)
    asker.start()
    world.bench.until(lambda: answers)
    asker.join()
    return answers[0]
