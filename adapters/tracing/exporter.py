"""What sends spans to a collector; it needs the extra `otel`."""

import logging
import time
from collections.abc import Sequence

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExportResult

QUIET_SECONDS = 60.0
"""Pause between two lines of the log about a collector that takes no spans (seconds)."""

log = logging.getLogger(__name__)


class ReportingExporter(OTLPSpanExporter):
    """OTLP over HTTP. A collector that does not answer is one line of the log a minute, not one for each attempt."""

    def __init__(self, place: str) -> None:
        """Read the OTEL_EXPORTER_OTLP_* variables; `place` is for the log. Raises ValueError."""
        super().__init__()
        self._place = place
        self._quiet_until = 0.0
        logging.getLogger("opentelemetry.exporter").setLevel(logging.CRITICAL)

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Send finished spans; they are lost when the collector does not take them in time."""
        result = super().export(spans)
        if result is SpanExportResult.FAILURE and time.monotonic() >= self._quiet_until:
            self._quiet_until = time.monotonic() + QUIET_SECONDS
            log.warning("traces_not_exported: the collector at %s took no spans", self._place)
        return result
