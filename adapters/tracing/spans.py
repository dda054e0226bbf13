"""Traces by OpenTelemetry, exported by OTLP as the OTEL_* variables say; nothing is imported while they name no place.

docs/how-to/traces.md lists the spans. With a dead collector spans are lost, and nothing else.
"""

import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
HTTP = "http/protobuf"
FLUSH_SECONDS = 2.0
"""Longest time for the last spans at the end of a process (seconds)."""

log = logging.getLogger(__name__)
_provider: "TracerProvider | None" = None


@contextmanager
def exported(process: str, *, joins: bool = False) -> Iterator[None]:
    """Export the spans of this process, which every span names, until the block ends.

    `joins`: they belong to the span in the variable TRACEPARENT. Whatever is wrong with the OTEL_* variables is logged.
    """
    global _provider
    _provider, token = _made(process), None
    if joins and _provider is not None:
        from opentelemetry import context
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        parent = TraceContextTextMapPropagator().extract({"traceparent": os.environ.get("TRACEPARENT", "")})
        token = context.attach(parent)
    try:
        yield
    finally:
        if token is not None:
            context.detach(token)
        made, _provider = _provider, None
        if made is not None:
            flush = threading.Thread(target=made.shutdown, daemon=True)  # it waits ten seconds for a dead collector
            flush.start()
            flush.join(FLUSH_SECONDS)


@contextmanager
def span(name: str, **attributes: str | float | None) -> Iterator[None]:
    """Time a piece of work of this thread, and what it starts in turn."""
    if _provider is None:
        yield
        return
    with _provider.get_tracer("mfmd").start_as_current_span(name, attributes=_named(attributes)):
        yield


def note(**attributes: str | float | None) -> None:
    """Add to the span in progress what is only known now."""
    if _provider is not None:
        from opentelemetry import trace

        trace.get_current_span().set_attributes(_named(attributes))


def record(name: str, since: float, **attributes: str | float | None) -> None:
    """Record work that began at `since` (Unix, seconds) and ends now: it went through several threads."""
    if _provider is not None:
        tracer = _provider.get_tracer("mfmd")
        tracer.start_span(name, start_time=int(since * 1e9), attributes=_named(attributes)).end()


def carrier() -> dict[str, str]:
    """Return the variables by which a child process joins the span in progress."""
    if _provider is None:
        return {}
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    found: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(found)
    return {name.upper(): value for name, value in found.items()}


def provider() -> "TracerProvider | None":
    """Return what a library makes its own spans with; None while nothing is exported."""
    return _provider


def _named(attributes: dict[str, str | float | None]) -> dict[str, str | float]:
    return {f"mfmd.{name}": value for name, value in attributes.items() if value is not None}


def _wanted() -> bool:
    off = os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true"
    exporters = os.environ.get("OTEL_TRACES_EXPORTER", "otlp").split(",")
    return not off and "otlp" in exporters and _place() != ""


def _place() -> str:
    return next(filter(None, map(os.environ.get, ENDPOINTS)), "")


def _made(process: str) -> "TracerProvider | None":
    if not _wanted():
        return None
    protocol = next(filter(None, map(os.environ.get, PROTOCOLS)), HTTP)
    if protocol != HTTP:
        log.warning("no traces are exported: OTLP by %s is asked for, only %s is supported", protocol, HTTP)
        return None
    try:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        from adapters.tracing.exporter import ReportingExporter

        resource = Resource.create({"mfmd.process": process})
        if str(resource.attributes["service.name"]).startswith("unknown_service"):
            resource = resource.merge(Resource({"service.name": "mfmd"}))
        made = TracerProvider(resource=resource, shutdown_on_exit=False)
        made.add_span_processor(BatchSpanProcessor(ReportingExporter(_place())))
        return made
    except ImportError:
        log.warning("no traces are exported: `pip install 'mfmd[otel]'` brings what exports them")
    except ValueError as error:
        log.warning("no traces are exported: a variable OTEL_* is wrong: %s", error)
    return None
