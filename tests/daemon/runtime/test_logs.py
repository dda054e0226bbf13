"""Logs: one stream that names its process in every line, without colour codes in files."""

import json
import logging

import pytest
import structlog

from configs.settings import LogSettings
from daemon.runtime.logs import configure_logs, get_logger


@pytest.fixture
def stream(capsys):
    """Return what was written to stderr; the handlers of other tests are the same again at the end."""
    root = logging.getLogger()
    level, quiet = root.level, logging.getLogger("httpx").level
    yield lambda: capsys.readouterr().err
    for handler in [item for item in root.handlers if isinstance(item.formatter, structlog.stdlib.ProcessorFormatter)]:
        root.removeHandler(handler)
    root.setLevel(level)
    logging.getLogger("httpx").setLevel(quiet)


def _say() -> None:
    try:
        raise ValueError("a bug")
    except ValueError:
        get_logger("tests").exception("ours", number=3)
    logging.getLogger("somebody").warning("of a library")


@pytest.mark.parametrize("terminal", [False, True])
def test_text_is_coloured_on_a_terminal_only(stream, monkeypatch, terminal):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr("sys.stderr.isatty", lambda: terminal)
    configure_logs(LogSettings(json_lines=False), "serve")
    _say()
    text = stream()
    assert ("\x1b[" in text) == terminal and "a bug" in text and "Traceback" in text
    assert terminal or text.count("process=serve") == 2


def test_every_line_of_json_names_its_process_also_after_a_reload(stream):
    configure_logs(LogSettings(), "observe")
    configure_logs(LogSettings(level="warning"))
    _say()
    lines = [json.loads(line) for line in stream().splitlines()]
    assert [(line["process"], line["event"]) for line in lines] == [("observe", "ours"), ("observe", "of a library")]
