"""What /metrics of the inference plane says, at the start and after work."""

import ast
import re
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from daemon import serving
from daemon.metrics import Metrics
from daemon.serving.errors import CODES, REFUSED_STATUS, ShadowDiffers
from daemon.serving.metrics import ENDPOINTS, STATUSES
from daemon.serving.middleware import version_headers
from daemon.serving.plane import InferencePlane
from tests.daemon.serving.serving_world import Served, World, image_bytes, running
from tests.test_error_codes import codes

PROMISED = {
    "mfmd_requests",
    "mfmd_request_seconds",
    "mfmd_requests_refused",
    "mfmd_batch_size",
    "mfmd_batch_seconds",
    "mfmd_queue_depth",
    "mfmd_swap",
    "mfmd_swap_seconds",
    "mfmd_serving_rollbacks",
    "mfmd_serving_version",
    "mfmd_serving_wanted_version",
    "mfmd_serving_version_info",
}


def test_every_metric_is_there_from_the_start(world: World) -> None:
    with running(world.settings()) as served:
        response = served.client.get("/metrics")
        assert response.headers["content-type"].startswith("text/plain")
        families = {family.name: family for family in text_string_to_metric_families(response.text)}
        assert families.keys() >= PROMISED
        assert all(families[name].documentation for name in PROMISED)
        assert served.metric("mfmd_swap_total", result="ok") == served.metric("mfmd_swap_total", result="failed") == 0
        assert served.metric("mfmd_serving_version") == 0
        for weights in ("resident", "disk"):
            assert served.metric("mfmd_serving_rollbacks_total", weights=weights) == 0
        for endpoint in ENDPOINTS:
            assert served.metric("mfmd_request_seconds_count", endpoint=endpoint, version="0") == 0
            for code in STATUSES:
                assert served.metric("mfmd_requests_total", code=code, endpoint=endpoint) == 0
        for code in CODES:
            assert served.metric("mfmd_requests_refused_total", reason=code) == 0
        assert served.metric("mfmd_queue_capacity_images") == world.settings().serving.advanced.queue_images
        daemon, digest = Metrics(served.plane.settings), re.compile(r"mfmd_(?:build|config_hash)_info.*")
        assert digest.findall(response.text) == digest.findall(daemon.exposition("")[0].decode())
        assert not re.search(r"_created\b", response.text)


def test_openmetrics_is_spoken_too(served: Served) -> None:
    response = served.client.get("/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"})
    assert response.headers["content-type"].startswith("application/openmetrics-text")
    assert response.text.endswith("# EOF\n") and "_created" not in response.text


def test_every_code_of_an_answer_starts_at_zero() -> None:
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in Path(serving.__path__[0]).rglob("*.py")]
    passed_on = {"invalid_json", "invalid_request", "http_error"} | REFUSED_STATUS.keys()
    assert {code for tree in trees for code in codes(tree)} - {ShadowDiffers.code} | passed_on == set(CODES)


def test_work_is_counted(world: World, served: Served) -> None:
    for _ in range(3):
        served.segment(image_bytes())
    served.segment(b"")
    served.client.get("/v1/secret-path-0001")
    assert served.metric("mfmd_requests_total", code="200", endpoint="/v1/segment") == 3
    assert served.metric("mfmd_requests_total", code="400", endpoint="/v1/segment") == 1
    assert served.metric("mfmd_requests_total", code="404", endpoint="unknown") == 1
    assert served.metric("mfmd_request_seconds_count", endpoint="/v1/segment", version="1") == 3
    assert served.metric("mfmd_request_seconds_count", endpoint="/v1/segment", version="0") == 1
    assert served.metric("mfmd_batch_size_sum") == served.metric("mfmd_batch_size_count") == 3
    assert served.metric("mfmd_batch_seconds_count") == 3


def test_every_route_is_counted_by_its_whole_path(world: World, served: Served) -> None:
    paths = served.client.get("/openapi.json").json()["paths"]
    for path, methods in paths.items():
        for method in methods:
            served.client.request(method, path.format(model="segmentation", version=1))
    text = served.client.get("/metrics").text
    families = {family.name: family for family in text_string_to_metric_families(text)}
    counted = {sample.labels["endpoint"] for sample in families["mfmd_requests"].samples if sample.value}
    assert counted - {"unknown"} == set(paths), "the page itself is no route of ours"


def test_the_version_that_serves_is_shown(world: World, served: Served) -> None:
    for seed in (2, 3):
        served.wait_for(world.add(seed))
    digest = served.client.get("/v1/serving").json()["sha256"]
    assert served.metric("mfmd_serving_version") == served.metric("mfmd_serving_wanted_version") == 3
    assert served.metric("mfmd_serving_version_info", sha256=digest[:12], version="3") == 1
    text = served.client.get("/metrics").text
    assert text.count("mfmd_serving_version_info{") == 1, "older versions are gone"
    series = re.findall(r'mfmd_request_seconds_count\{endpoint="/v1/segment",version="(\d)"', text)
    assert sorted(series) == ["0", "2", "3"], "versions in memory, and answers without one"
    assert served.metric("mfmd_swap_total", result="ok") == 3
    for phase in ("verify", "drain", "load", "warmup"):
        assert served.metric("mfmd_swap_seconds_count", phase=phase) == 3


def test_the_log_names_the_digest_that_answers_name(
    world: World, plane: InferencePlane, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    version = world.add(1)
    plane.follower.poll(0.0)
    assert plane.slots.live is not None
    (line,) = [record.msg for record in caplog.records if "version_serves" in str(record.msg)]
    named = version_headers(plane.slots.live)
    assert isinstance(line, dict) and (line["version"], line["digest"]) == (version, named["X-Checkpoint-Hash"])
