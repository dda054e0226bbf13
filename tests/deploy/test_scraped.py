"""A real Prometheus scrapes a daemon through a round, a promotion, a rollback and a failed swap; queries have data."""

import re
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file, save_file

from daemon.demo.conditions import DUSK
from daemon.demo.driving import DrivenDaemon
from daemon.demo.scoring import ask
from tests.deploy.test_grafana import QUERIES
from tests.deploy.test_prometheus import ALERTS, FOLDER, RECORDED
from tests.e2e.conftest import SETTINGS, draw, world

PROMETHEUS = shutil.which("prometheus")
pytestmark = [
    pytest.mark.nightly,
    pytest.mark.disk,
    pytest.mark.skipif(PROMETHEUS is None, reason="prometheus (a Debian package) is not installed"),
]
SELECTOR = re.compile(r"\b(?:mfmd_\w+|up\b)(?:\{[^}]*\})?")


@contextmanager
def prometheus(folder: Path, driven: DrivenDaemon) -> Iterator[str]:
    """Scrape both planes every second with the rules of the project; yields the base URL of Prometheus."""
    config = yaml.safe_load((FOLDER / "prometheus.yml").read_text(encoding="utf-8"))
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["rule_files"] = [str(FOLDER / name) for name in config["rule_files"]]
    for job, plane in zip(config["scrape_configs"], ("daemon", "serve"), strict=True):
        job["static_configs"] = [{"targets": [urlsplit(driven.url(plane)).netloc]}]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config), encoding="utf-8")
    with socket.create_server(("127.0.0.1", 0)) as free:
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    command = [
        PROMETHEUS or "", f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'tsdb'}",
        f"--web.listen-address={urlsplit(url).netloc}", "--log.level=error",
    ]  # fmt: skip
    process = subprocess.Popen(command)
    try:
        driven.wait_for(lambda: _asked(url, 'up == 1 and on (job) up{job=~"mfmd.*"}') or None, "a scrape", 60.0)
        yield url
    finally:
        process.terminate()
        process.wait(20.0)


def _asked(url: str, query: str) -> list[dict]:
    """Return the series of a query; none while Prometheus does not answer yet."""
    try:
        response = httpx.get(f"{url}/api/v1/query", params={"query": query})
    except httpx.HTTPError:
        return []
    if response.status_code == 503:  # it listens before it is ready
        return []
    answer = response.json()
    assert answer["status"] == "success", (query, answer)
    return answer["data"]["result"]


def _value(url: str, query: str) -> float:
    (series,) = _asked(url, query)
    return float(series["value"][1])


def test_every_query_has_data_and_the_right_numbers(tmp_path: Path) -> None:
    with world(tmp_path, SETTINGS["pretrain"]["steps"]) as driven:
        camera = draw(tmp_path / "camera", DUSK, 24)
        driven.start()
        driven.wait_until_serving(1, 60.0)
        with prometheus(tmp_path, driven) as url, httpx.Client(timeout=30.0) as client:
            driven.drop(camera)
            (driven.settings.watch.folder / "text.jpg").write_text("this is no image")
            verdict = driven.follow_round(1, 120.0)
            assert verdict.decision == "accepted"
            driven.wait_until_serving(2, 60.0)
            ask(client, driven.url("serve"), camera[0])
            assert driven.run_command("rollback").returncode == 0
            driven.wait_until_serving(1, 60.0)
            ask(client, driven.url("serve"), camera[0])
            moved = 'mfmd_serving_version == 1 and on () mfmd_ref_version{ref="serving"} == 1'
            driven.wait_for(lambda: _asked(url, moved) or None, "the rollback", 20.0)
            driven.wait_for(lambda: _asked(url, "rate(mfmd_requests_total[1m]) > 0") or None, "two scrapes", 20.0)
            answered = 'mfmd_request_seconds_count{endpoint="/v1/segment", version="1"}'
            driven.wait_for(lambda: _asked(url, f"{answered} == 1") or None, "the answer of the old version", 20.0)
            numbers = {
                'mfmd_ref_version{ref="serving"}': 1, "mfmd_serving_wanted_version": 1,
                "mfmd_buffer_committed_images_total": 24, 'mfmd_refused_files{reason="not_an_image"}': 1,
                'mfmd_round_runs_total{result="promoted"}': 1, 'mfmd_serving_moves_total{cause="round"}': 1,
                'mfmd_swap_total{result="failed"}': 0, "mfmd_round_consecutive_failures": 0,
                "mfmd_round_step - mfmd_round_step_target": 0, "sum(mfmd_round_phase_info)": 0,
                "count(count by (sha256) (mfmd_config_hash_info))": 1, "count(mfmd_build_info)": 2,
                "mfmd_self_check_errors": 0, "count(mfmd_self_check_last_timestamp_seconds > 0)": 1,
                'count(mfmd_round_memory_bytes{kind="resident"} > 1e8)': 1,
                'mfmd_request_seconds_count{endpoint="/v1/segment", version="2"}': 1,
            }  # fmt: skip
            assert {query: _value(url, query) for query in numbers} == numbers
            shown = [query.replace("$__rate_interval", "1m").replace("$daemon", ".*") for query in QUERIES]
            asked = {name for rule in [*RECORDED, *ALERTS] for name in SELECTOR.findall(rule["expr"])}
            assert len(asked) > 30
            assert not [query for query in [*shown, *asked] if not _asked(url, query.replace(" > 0", ""))]
            assert not [series["metric"] for series in _asked(url, 'ALERTS{alertstate="firing", severity="critical"}')]
            _promote_a_broken_version(driven)
            failed = (
                'mfmd_swap_total{result="failed"} and on () mfmd_serving_wanted_version - mfmd_serving_version == 2'
            )
            driven.wait_for(lambda: _asked(url, failed) or None, "a failed swap", 30.0)
            alert = 'ALERTS{alertstate="firing", alertname="MfmdSwapFails"}'
            driven.wait_for(lambda: _asked(url, alert) or None, "the alert", 30.0)


def _promote_a_broken_version(driven: DrivenDaemon) -> None:
    """Let a version be wanted whose outputs are not finite, which the plane finds before it serves."""
    registry, weights = driven.registry, driven.settings.state / "broken.safetensors"
    broken = load_file(registry.weights_path(2))
    for value in broken.values():
        value.fill(np.nan if value.dtype.kind == "f" else 0)
    save_file(broken, weights)
    version = registry.add(weights, registry.manifest(2), by="import").version
    registry.promote(version, by="operator", reason="test")
