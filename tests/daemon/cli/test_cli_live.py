"""Progress: plain lines where there is no terminal, one at each change of phase."""

import pytest

from daemon.cli.output import live_progress


def test_lines_for_a_log_file(capsys: pytest.CaptureFixture[str]) -> None:
    with live_progress() as show:
        show("loading", 0, 10, {})
        show("training", 1, 10, {"loss": 0.123456, "kept": None})
        show("training", 2, 10, {"loss": 0.1})
        show("scoring", 10, 10, {})
    captured = capsys.readouterr()
    assert captured.err.splitlines() == ["loading 0/10", "training 1/10 loss 0.123", "scoring 10/10"]
    assert captured.out == "", "stdout belongs to --json"


def test_bar_on_a_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "160")
    with live_progress() as show:
        show("training", 3, 7, {"loss": 0.5})
    captured = capsys.readouterr()
    assert "3/7" in captured.err and "loss 0.5" in captured.err and captured.out == ""
