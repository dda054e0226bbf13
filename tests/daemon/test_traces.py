"""Traces of files, rounds, the gate, swaps and requests reach a real collector; without one they cost nothing.

The real round process joins in `tests/e2e/test_drop_to_rollback.py`.
"""

import logging
import socket
import subprocess
import sys
import time

import pytest

from adapters.tracing import spans
from daemon.metrics import Metrics
from daemon.rounds.loop import RoundLoop
from storage.durable.digest import digest_of, short
from tests.daemon.collector import collecting
from tests.daemon.serving.serving_world import World, image_bytes, running

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACEPARENT = f"00-{TRACE}-{PARENT}-01"
OFF = [
    {},
    {"OTEL_EXPORTER_OTLP_ENDPOINT": ""},
    {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", "OTEL_SDK_DISABLED": "true"},
    {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", "OTEL_TRACES_EXPORTER": "none"},
]


@pytest.fixture
def collector(monkeypatch):
    with collecting() as made:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", made.address)
        yield made


def test_files_a_round_and_its_verdict_are_spans(world, registry, drop, program, collector, write_image):
    """The process of the round gets the place in the trace, and the variables to export its own spans."""
    told = drop.parent / "told"
    program(f"Path({str(told)!r}).write_text(str(dict(os.environ))); scores('failed', 'no')")
    bad, good = drop / "bad.png", write_image(drop / "good.png", 99)
    bad.write_bytes(b"rubbish")
    loop = RoundLoop(world.settings, world.buffer, registry, Metrics(world.settings).rounds)
    with spans.exported("daemon"):
        world.until(lambda: world.counts.refused and world.counts.frames == 9)
        loop.request()
        loop.step()
    files = {span.facts["mfmd.file"]: span.facts for span in collector.named("mfmd.ingest")}
    assert files["bad.png"]["mfmd.outcome"] == "rejected" and files["bad.png"]["mfmd.reason"] == "not_an_image"
    assert files["good.png"]["mfmd.outcome"] == "stored"
    assert files["good.png"]["mfmd.digest"] == short(digest_of(good))
    (training,), (gate,) = collector.named("mfmd.round"), collector.named("mfmd.gate")
    assert training.facts["mfmd.round"] == gate.facts["mfmd.round"] == 1
    assert training.facts["mfmd.decision"] == gate.facts["mfmd.decision"] == "rejected"
    assert (gate.trace, gate.parent) == (training.trace, training.span) and not training.failed
    environment = told.read_text()
    assert f"'TRACEPARENT': '00-{training.trace}-{training.span}-" in environment
    assert f"'OTEL_EXPORTER_OTLP_ENDPOINT': '{collector.address}'" in environment
    assert {span.process for span in collector.spans} == {"daemon"}


def test_a_request_joins_the_trace_of_its_client_and_a_swap_has_its_phases(tmp_path, collector):
    world = World(tmp_path)
    version = world.add(0)
    with spans.exported("serve"), running(world.settings()) as served:
        served.wait_for(version)
        sent = {"content": image_bytes(), "headers": {"traceparent": TRACEPARENT}}
        assert served.client.post("/v1/segment", **sent).status_code == 200
        assert served.client.post("/v1/segment", content=b"no image").status_code == 415
        assert served.client.get("/readyz").status_code == 200
    asked, refused = collector.named("POST /v1/segment")
    assert (asked.trace, asked.parent, asked.facts["mfmd.version"]) == (TRACE, PARENT, str(version))
    assert refused.trace != TRACE and refused.facts["http.response.status_code"] == 415
    assert not any("readyz" in span.name for span in collector.spans), "probes are no news"
    (swap,) = collector.named("mfmd.swap")
    parts = [span for span in collector.spans if span.parent == swap.span]
    assert {span.name for span in parts} == {f"mfmd.swap.{part}" for part in ("verify", "drain", "load", "warmup")}
    assert 0 < sum(span.seconds for span in parts) <= swap.seconds


def test_a_child_process_joins_by_its_environment_and_an_error_is_marked(monkeypatch, collector):
    monkeypatch.setenv("TRACEPARENT", TRACEPARENT)
    with pytest.raises(RuntimeError), spans.exported("round", joins=True), spans.span("mfmd.round.process"):
        raise RuntimeError("a bug")
    (span,) = collector.spans
    assert (span.trace, span.parent, span.process, span.failed) == (TRACE, PARENT, "round", True)


@pytest.mark.parametrize("variables", OFF, ids=["nothing", "empty", "disabled", "none"])
def test_without_a_place_to_send_to_nothing_is_imported(variables):
    code = """
import sys
from adapters.tracing import spans
with spans.exported("daemon", joins=True), spans.span("x", round=1):
    spans.note(version=1)
    spans.record("y", 0.0)
    assert spans.carrier() == {} and spans.provider() is None
assert not [name for name in sys.modules if name.startswith("opentelemetry")]
"""
    done = subprocess.run([sys.executable, "-c", code], env=variables | {"PYTHONPATH": ":".join(sys.path)}, check=False)
    assert done.returncode == 0


def test_a_collector_that_does_not_answer_costs_a_line_and_ends_nothing(monkeypatch, caplog):
    monkeypatch.setattr(spans, "FLUSH_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "60")
        began = time.monotonic()
        with spans.exported("daemon"), spans.span("x"):
            pass
        assert time.monotonic() - began < 30
    with socket.create_server(("127.0.0.1", 0)) as closed:
        address = f"http://127.0.0.1:{closed.getsockname()[1]}"
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", address)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "0.1")
    monkeypatch.setattr(spans, "FLUSH_SECONDS", 30.0)
    with spans.exported("daemon"):
        for _ in range(3):
            with spans.span("x"):
                pass
            spans.provider().force_flush()
    told = [record.getMessage() for record in caplog.records if address in record.getMessage()]
    assert len(told) == 1 and told[0].startswith("traces_not_exported"), caplog.text


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc", "only http/protobuf is supported"),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "-5", "a variable OTEL_* is wrong"),
    ],
)
def test_a_variable_that_cannot_be_used_is_told(monkeypatch, caplog, name, value, words):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv(name, value)
    with caplog.at_level(logging.WARNING), spans.exported("daemon"), spans.span("x"):
        assert spans.provider() is None
    assert words in caplog.text


def test_without_the_extra_the_log_says_what_to_install(monkeypatch, caplog):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.resources", None)
    with spans.exported("daemon"):
        assert spans.provider() is None
    assert "pip install 'mfmd[otel]'" in caplog.text
