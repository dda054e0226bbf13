"""Logs: structlog and the standard library in one stream, JSON lines (or text) on stderr, coloured on a terminal."""

import logging
import os
import sys
import time

import structlog
from structlog.typing import EventDict, Processor

from configs.settings import LogSettings

QUIET = ("httpx", "httpcore", "uvicorn.access", "asyncio", "PIL", "zarr")
"""Loggers of libraries that say nothing of use below a warning."""
SILENT = ("python_multipart",)
"""Loggers of libraries that call an error what a client did wrong: it is answered and counted."""
LASTING_SECONDS = 60.0
"""A state that lasts is logged once in this time (seconds)."""

_SHARED: tuple[Processor, ...] = (
    structlog.contextvars.merge_contextvars,
    structlog.stdlib.add_log_level,
    structlog.stdlib.add_logger_name,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
)
_OURS: tuple[Processor, ...] = (
    structlog.stdlib.filter_by_level,
    *_SHARED,
    structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
)


class Lasting:
    """Whether a state that lasts is logged now: when it begins, then once a minute."""

    def __init__(self) -> None:
        self._logged: dict[str, float] = {}

    def due(self, state: str) -> bool:
        """Return whether `state` was not logged for a minute; if so, it counts as logged."""
        now = time.monotonic()
        self._logged = {known: at for known, at in self._logged.items() if now - at < LASTING_SECONDS}
        return self._logged.setdefault(state, now) == now


def configure_logs(settings: LogSettings, process: str = "") -> None:
    """Send all logs, those of libraries too, to stderr in the configured format; safe to call more than once.

    Every line names `process`; a later call without it keeps the name.
    """
    structlog.configure(
        processors=list(_OURS),
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
    root = logging.getLogger()
    for old in [item for item in root.handlers if isinstance(item.formatter, structlog.stdlib.ProcessorFormatter)]:
        process = process or old.name or ""
        root.removeHandler(old)
    colors = sys.stderr.isatty() and "NO_COLOR" not in os.environ
    traceback = structlog.dev.default_exception_formatter if colors else structlog.dev.plain_traceback
    tail: list[Processor] = [structlog.dev.ConsoleRenderer(colors=colors, exception_formatter=traceback)]
    if settings.json_lines:
        tail = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    handler = logging.StreamHandler(sys.stderr)
    handler.name = process
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=list(_SHARED),
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, _naming(process), *tail],
        )
    )
    root.addHandler(handler)
    root.setLevel(settings.level.upper())
    for name in QUIET:
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))
    for name in SILENT:
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)


def _naming(process: str) -> Processor:
    """Return what adds the name of the process to a line."""

    def name(_logger: object, _method: str, line: EventDict) -> EventDict:
        return {"process": process, **line}

    return name


def get_logger(name: str) -> structlog.stdlib.BoundLogger:
    """Return the logger `name`: `log.info("frames_committed", frames=3)` logs an event and its facts.

    It uses the standard library, so that a program without configured logs prints nothing below a warning.
    """
    logger: structlog.stdlib.BoundLogger = structlog.wrap_logger(
        logging.getLogger(name), processors=list(_OURS), wrapper_class=structlog.stdlib.BoundLogger
    )
    return logger
