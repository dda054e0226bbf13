"""A collector of OTLP over HTTP on this machine, which keeps the spans that it is sent."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


@dataclass(frozen=True)
class Seen:
    """One span."""

    name: str
    process: str
    trace: str
    span: str
    parent: str
    seconds: float
    failed: bool
    facts: Mapping[str, str | int]


class Collector:
    """What arrived, and where it is sent."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.spans: list[Seen] = []

    def named(self, name: str) -> list[Seen]:
        """Spans of one name, in the order of their ends."""
        return [span for span in self.spans if span.name == name]

    def take(self, body: bytes) -> None:
        """Keep the spans of one export."""
        for group in ExportTraceServiceRequest.FromString(body).resource_spans:
            about = _facts(group.resource.attributes)
            assert about["service.name"] == "mfmd"
            for span in (span for scope in group.scope_spans for span in scope.spans):
                self.spans.append(
                    Seen(
                        name=span.name,
                        process=str(about["mfmd.process"]),
                        trace=span.trace_id.hex(),
                        span=span.span_id.hex(),
                        parent=span.parent_span_id.hex(),
                        seconds=(span.end_time_unix_nano - span.start_time_unix_nano) / 1e9,
                        failed=span.status.code == 2,
                        facts=_facts(span.attributes),
                    )
                )


def _facts(attributes) -> dict[str, str | int]:
    return {item.key: getattr(item.value, item.value.WhichOneof("value")) for item in attributes}


@contextmanager
def collecting() -> Iterator[Collector]:
    """A collector that runs until the block ends."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.path == "/v1/traces" and self.headers["Content-Type"] == "application/x-protobuf"
            collector.take(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    collector = Collector(f"http://127.0.0.1:{server.server_port}")
    thread = Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield collector
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
