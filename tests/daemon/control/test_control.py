"""The control API on a real socket: open to look at, closed to change, every error with a code."""

import errno
import json
import math
import socket
import threading

import httpx
import pytest
from fastapi import FastAPI

from daemon.cli import main
from daemon.control import server as server_module
from daemon.control.client import ControlClient, ControlFailed, NoDaemon
from daemon.control.server import ControlServer, bind
from daemon.errors import AddressInUse, Stopping
from daemon.exit_codes import ExitCode
from daemon.runtime.activity import ChildActivity
from daemon.runtime.run_record import publish_record
from daemon.runtime.worker import Worker
from storage.errors import DurabilityLost
from storage.registry.manifest import HistoryEvent
from storage.rounds.folder import RoundStore
from storage.rounds.records import RoundScores, RoundSpec
from tests.daemon.control.control_world import AUTHORISED, CHANGES, JSON, TOKEN, suggestion
from tests.daemon.running import serving_locally

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
        assert client.problems("/healthz") == [] and client.running_round() is None and not client.left
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


@pytest.mark.parametrize(
    ("change", "end", "now"), [("approve", "promoted", 2), ("reject", "rejected", 1)], ids=["approved", "rejected"]
)
def test_a_person_decides_and_who_and_why_are_recorded(world, registry, layout, add_version, change, end, now):
    folder = suggestion(layout, add_version(1, promote=False), incumbent=1)
    none = world.client.post(f"/v1/{change}", headers=AUTHORISED, json={"version": 1})
    assert (none.status_code, none.json()["code"]) == (409, "not_suggested")
    assert "version 2 waits" in none.json()["message"] and folder.record().stage == "suggested"
    wanted = {"version": 2, "reason": "looked at 40 frames of the night"}
    answer = world.client.post(f"/v1/{change}", headers=AUTHORISED, json=wanted)
    assert (answer.status_code, folder.record().stage, registry.serving().version) == (200, end, now)
    recorded = answer.json()["answer"]
    assert (recorded["by"], recorded["reason"], recorded["approved"]) == ("operator", wanted["reason"], now == 2)
    assert registry.manifest(2).verdict["answer"] == recorded == folder.verdict().answer.model_dump()
    last = registry.history()[-1]
    assert last.event == end and wanted["reason"] in last.reason
    again = world.client.post(f"/v1/{change}", headers=AUTHORISED, json=wanted)
    assert (again.status_code, again.json()["code"]) == (409, "not_suggested")


@pytest.mark.parametrize(("command", "now"), [("approve", 2), ("reject", 1)])
def test_a_person_decides_on_the_command_line(world, registry, layout, add_version, tmp_path, capsys, command, now):
    folder = suggestion(layout, add_version(1, promote=False), incumbent=1)
    config = tmp_path / "mfmd.yaml"
    config.write_text(f"classes: demo\nwatch: {{folder: drop}}\nstate: {layout.root}\n", encoding="utf-8")
    with layout.lock(), serving_locally(world.local_app, layout):
        publish_record(layout, "daemon", *world.server.address)
        assert main([command, "1", "--config", str(config)]) == ExitCode.FAILURE
        assert "error[not_suggested]" in capsys.readouterr().err
        assert main([command, "2", "--reason", "seen at night", "--json", "--config", str(config)]) == 0
    said = json.loads(capsys.readouterr().out)["answer"]
    assert said == folder.verdict().answer.model_dump() and said["reason"] == "seen at night"
    assert registry.serving().version == now


def test_pause_and_resume(world, layout):
    def send(change, **body):
        answer = world.client.post(f"/v1/{change}", headers=AUTHORISED, json=body)
        return answer.status_code, answer.json()

    assert send("pause")[0] == send("resume")[0] == 422, "both need a reason"
    status, said = send("pause", reason="the camera is moved")
    assert (status, said["by"], said["reason"]) == (200, "operator", "the camera is moved")
    assert world.client.get("/v1/status").json()["pause"] == said == json.loads(layout.pause.read_text())
    assert send("resume", reason="it stands") == (200, {"resumed": True})
    assert send("resume", reason="it stands") == (200, {"resumed": False}) and not layout.pause.exists()


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


def test_neither_disk_nor_trainer_decides_whether_the_daemon_lives(world, registry, wait_until):
    """A full disk, a lost fsync, a round that goes on and a state directory that is gone: a restart mends none."""
    end, meter = threading.Event(), world.bench.metrics.process
    full, lost = OSError(errno.ENOSPC, "No space left on device"), DurabilityLost("fsync failed")
    steps = {"full": lambda: _throw(full), "lost": lambda: _throw(lost), "training": lambda: end.wait() or 0.05}
    for name, step in steps.items():
        world.parts.append(Worker(name, step, meter, stuck_seconds=math.inf if name == "training" else 60.0))
        world.parts[-1].start()
    wait_until(lambda: all(part.last_error for part in world.parts if part.name in ("full", "lost")))
    (registry.root / "refs").rename(registry.root / "gone")
    assert world.client.get("/healthz").status_code == 200
    assert world.client.get("/readyz").json()["problems"][0] == "lost stopped: fsync failed"
    end.set()


def _throw(error: Exception) -> float:
    raise error


def test_a_server_whose_loop_does_not_move_is_stuck(monkeypatch, wait_until):
    app, end = FastAPI(), threading.Event()

    @app.get("/")
    async def hang() -> None:
        end.wait()

    monkeypatch.setattr(server_module, "STUCK_SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = ControlServer(app, listener)
        assert not server.stuck
        server.start()
        wait_until(lambda: not server.stuck)
        url = f"http://127.0.0.1:{server.address[1]}/"
        asker = threading.Thread(target=httpx.get, args=(url,), kwargs={"trust_env": False})
        asker.start()
        wait_until(lambda: server.stuck)
        end.set()
        wait_until(lambda: not server.stuck)
        asker.join()
        server.stop()


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
