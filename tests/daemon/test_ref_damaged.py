"""`mfmd run` on a damaged `refs/serving`: the plane serves what served last, status says why the rest waits."""

import httpx
import pytest

from daemon.doctor import Level, examine_daemon
from daemon.status.collect import collect_status
from tests.daemon.conftest import write_config
from tests.daemon.running import Running, command
from tests.daemon.serving.serving_world import LIGHT, World, image_bytes, settings_for

SECTIONS = {
    "watch": {"stability_seconds": 0.1, "advanced": {"rescan_seconds": 0.2, "group_seconds": 0.05}},
    "observe": {"enabled": False},
    "videos": {"enabled": False},
    "control": {"port": 0},
    "classes": "demo",
}


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    world = World(tmp_path_factory.mktemp("damaged"))
    drop = world.root / "drop"
    drop.mkdir()
    (drop / "a.png").write_bytes(image_bytes())
    world.layout.create()
    world.add(0, **LIGHT)
    world.add(1, **LIGHT)
    world.registry.ref_path("serving").write_bytes(b"\0" * 120)
    settings = settings_for(world.layout.root, **{**SECTIONS, "watch": {"folder": drop, **SECTIONS["watch"]}})
    daemon = Running(write_config(world.root / "mfmd.yaml", settings), world.layout)
    daemon.world, daemon.settings = world, settings
    yield daemon
    assert daemon.stop()[0] == 0


def test_the_plane_serves_what_the_history_names_and_status_says_how_to_mend_the_ref(running):
    path = running.world.registry.ref_path("serving")
    cause = f"{path}: not a ref: "
    remedy = "stop `mfmd run`, then `mfmd check --repair` rewrites it"
    running.wait(lambda: collect_status(running.settings).plane.ready, "a warm version")
    running.wait(lambda: collect_status(running.settings).buffer.frames == 1, "a frame: ingest works")
    running.wait(lambda: any("rounds" in told for told in _waiting(running)), "rounds to be known to wait")
    status = collect_status(running.settings)
    assert status.serving_damaged and status.plane.version == 2 and not status.buffer_damaged
    (told,) = [message for message in status.messages if str(path) in message]
    assert cause in told and told.endswith(remedy)
    address = f"http://127.0.0.1:{status.plane.port}"
    answer = httpx.post(f"{address}/v1/segment", content=image_bytes(), trust_env=False)
    assert (answer.status_code, answer.headers["X-Checkpoint-Version"]) == (200, "2")
    assert "mfmd_serving_wanted_version NaN" in httpx.get(f"{address}/metrics", trust_env=False).text
    metrics = running.request("GET", "/metrics").text
    assert 'mfmd_state_readable{part="refs"} 0.0' in metrics and "mfmd_registry_versions 2.0" in metrics
    assert 'mfmd_state_readable{part="buffer"} 1.0' in metrics
    assert running.request("GET", "/healthz").status_code == 200
    problem = running.request("GET", "/readyz").json()["problems"][-1]
    assert problem.startswith(cause) and problem.endswith(remedy)
    assert next(item.level for item in examine_daemon(running.settings)) == Level.FAIL
    lines = [line for line in running.log.read_text().splitlines() if "serving_another_instead" in line]
    assert len(lines) == 1 and '"version": 2' in lines[0]


def test_a_promotion_mends_it_without_a_restart(running):
    done = command("promote", "2", "--reason", "the ref was damaged", "--config", str(running.config))
    assert done.returncode == 0, done.stderr
    running.wait(lambda: running.request("GET", "/readyz").status_code == 200, "all to be well")
    status = collect_status(running.settings)
    assert status.serving is not None and (status.serving.version, status.plane.version) == (2, 2)


def _waiting(running):
    return [message for message in collect_status(running.settings).messages if " wait" in message]
