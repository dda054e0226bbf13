"""docs/reference/metrics.md names the metrics that both planes expose, with types, labels and help texts."""

import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from prometheus_client import CollectorRegistry, generate_latest

from configs.settings import Settings
from daemon.control.state_metrics import StateCollector
from daemon.metrics import Metrics
from daemon.runtime.activity import ChildActivity
from daemon.serving.metrics import ServingMetrics
from storage.buffer.frames import FrameBuffer
from storage.buffer.observations import Observation, Observations
from storage.layout import StateLayout
from tests.deploy.test_prometheus import ALERTS, PROMTOOL, RECORDED

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "reference" / "metrics.md"
NAME = re.compile(r"\bmfmd_[a-z]\w*[a-z]\b(?![*_])")


class Family(NamedTuple):
    """One metric as Prometheus sees it."""

    kind: str
    labels: frozenset[str]
    meaning: str


def _families(registry: CollectorRegistry) -> dict[str, Family]:
    """Families by exposed name: counters end in `_total`, infos in `_info`; the label `le` is Prometheus's own."""
    found = {}
    for metric in registry.collect():
        if metric.name.startswith("mfmd_"):
            name = metric.name + {"counter": "_total", "info": "_info"}.get(metric.type, "")
            labels = frozenset(key for sample in metric.samples for key in sample.labels) - {"le"}
            found[name] = Family(metric.type, labels, metric.documentation)
    return found


def _documented(plane: str) -> dict[str, Family]:
    """Families in the tables below the heading `## plane`."""
    text = PAGE.read_text(encoding="utf-8").partition(f"\n## {plane}\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `(mfmd_\w+)` \| (\w+) \|([^|]*)\| ([^|]+) \|$", text, flags=re.MULTILINE)
    return {
        name: Family(kind, frozenset(re.findall(r"`(\w+)`", labels)), meaning) for name, kind, labels, meaning in rows
    }


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings.model_validate(
        {
            "classes": "demo",
            "watch": {"folder": "drop"},
            "buffer": {"height": 32, "width": 32, "advanced": {"tile": 32}},
        },
        context={"base": tmp_path},
    )


@pytest.fixture
def control_plane(settings: Settings) -> Iterator[CollectorRegistry]:
    """What the daemon exposes, over a state directory in which every part has something to tell."""
    layout = StateLayout(settings.state)
    layout.create()
    with Observations.open(layout.observations, writable=True) as observations:
        observations.add([_observation(len(settings.classes))])
    child = ChildActivity(name="serve", running=True, pid=1, since=0.0)
    with closing(FrameBuffer.open(layout, settings.buffer, writable=True)) as buffer:
        metrics = Metrics(settings)
        metrics.registry.register(StateCollector(settings, buffer.catalog, lambda: [child]))
        metrics.rounds.loss.labels(part="mfm").set(1.0)
        yield metrics.registry


def _observation(classes: int) -> Observation:
    area = np.full(classes, 1 / classes, np.float32)
    embedding = np.zeros(4, np.float32)
    return Observation(1, 1, 1, time.time(), 0.5, 0.9, area, embedding, style=embedding)


def test_control_plane_metrics_are_documented(control_plane: CollectorRegistry) -> None:
    _compare(_families(control_plane), _documented("Control plane"))


def test_inference_plane_metrics_are_documented(settings: Settings) -> None:
    metrics = ServingMetrics(settings)
    metrics.serve(3, "0" * 64, [3])
    _compare(_families(metrics.registry), _documented("Inference plane"))


@pytest.mark.skipif(PROMTOOL is None, reason="promtool (of the Debian package prometheus) is not installed")
def test_promtool_finds_nothing_unusual(control_plane: CollectorRegistry, settings: Settings) -> None:
    for registry in (control_plane, ServingMetrics(settings).registry):
        command = [PROMTOOL or "", "check", "metrics"]
        done = subprocess.run(command, input=generate_latest(registry), capture_output=True, check=False)
        assert (done.returncode, done.stdout + done.stderr) == (0, b"")


def test_every_metric_is_watched_or_kept_for_queries_by_hand() -> None:
    names = {*_documented("Control plane"), *_documented("Inference plane")}
    dashboard = (ROOT / "deploy" / "grafana" / "mfmd.json").read_text(encoding="utf-8")
    watched = " ".join([dashboard, *(rule["expr"] for rule in [*ALERTS, *RECORDED])])
    used = {re.sub("_bucket$", "", name) for name in NAME.findall(watched)}
    table = PAGE.read_text(encoding="utf-8").partition("\n## For queries by hand\n")[2]
    by_hand = re.findall(r"`(mfmd_\w+)`", table)
    assert sorted(names) == sorted([*used, *by_hand]), "none is unused, none unknown, none both"


def test_every_metric_that_is_named_anywhere_exists() -> None:
    known = {*_documented("Control plane"), *_documented("Inference plane")}
    pages = [ROOT / "README.md", ROOT / "CHANGELOG.md", *ROOT.glob("docs/**/*.md"), *ROOT.glob("deploy/**/*.*")]
    for page in pages:
        named = {re.sub("_(bucket|sum|count)$", "", name) for name in NAME.findall(page.read_text(encoding="utf-8"))}
        assert not named - known, page


def test_units_stand_in_the_names(control_plane: CollectorRegistry, settings: Settings) -> None:
    names = {**_families(control_plane), **_families(ServingMetrics(settings).registry)}
    for name, family in names.items():
        assert family.kind != "histogram" or name.endswith(("_seconds", "_bytes", "_size"))
        assert not name.endswith(("_ms", "_percent", "_mb")), name


def _compare(exposed: dict[str, Family], documented: dict[str, Family]) -> None:
    assert not set(exposed) - set(documented), "exposed, but not in docs/reference/metrics.md"
    assert not set(documented) - set(exposed), "in docs/reference/metrics.md, but not exposed"
    kinds = {name: family.kind for name, family in exposed.items()}
    assert {name: family.kind for name, family in documented.items()} == kinds
    for name, family in exposed.items():
        assert not family.labels - documented[name].labels, name
        assert documented[name].meaning.startswith(f"{family.meaning}."), f"{name}: the page and the help text differ"
