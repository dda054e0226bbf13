"""What /metrics of the inference plane says, at the start and after work."""

from prometheus_client.parser import text_string_to_metric_families

from tests.daemon.serving.serving_world import Served, World, image_bytes, running

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
        for code in ("200", "500", "503"):
            assert served.metric("mfmd_requests_total", code=code, endpoint="/v1/segment") == 0


def test_work_is_counted(world: World, served: Served) -> None:
    for _ in range(3):
        served.segment(image_bytes())
    served.segment(b"")
    served.client.get("/v1/secret-path-0001")
    assert served.metric("mfmd_requests_total", code="200", endpoint="/v1/segment") == 3
    assert served.metric("mfmd_requests_total", code="400", endpoint="/v1/segment") == 1
    assert served.metric("mfmd_requests_total", code="404", endpoint="unknown") == 1
    assert served.metric("mfmd_request_seconds_count", endpoint="/v1/segment") == 4
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
    assert served.client.get("/metrics").text.count("mfmd_serving_version_info{") == 1, "older versions are gone"
    assert served.metric("mfmd_swap_total", result="ok") == 3
    for phase in ("verify", "drain", "load", "warmup"):
        assert served.metric("mfmd_swap_seconds_count", phase=phase) == 3
