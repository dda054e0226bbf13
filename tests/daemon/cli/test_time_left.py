"""Progress says how long it still takes, once a step was seen to take time."""

import pytest

from daemon.cli.output import TimeLeft, live_progress, time_left


def test_the_rest_follows_from_the_pace_of_this_phase() -> None:
    left = TimeLeft()
    assert left.after("importing", 0, 10, 100.0) is None
    assert left.after("importing", 5, 10, 101.0) == pytest.approx(1.0)
    assert left.after("training", 0, 4000, 200.0) is None, "another phase has another pace"
    assert left.after("training", 0, 4000, 230.0) is None, "no step was done"
    assert left.after("training", 1000, 4000, 300.0) == pytest.approx(300.0)
    assert left.after("training", 400, 4000, 400.0) is None, "it went back to a state"
    assert left.after("training", 500, 4000, 410.0) == pytest.approx(350.0)
    assert left.after("training", 4000, 4000, 500.0) == 0.0
    assert left.after("scoring", 3, 0, 501.0) is None


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, ""), (0.0, ", about 0 s left"), (45.4, ", about 45 s left"), (600.0, ", about 10 min left"),
        (7260.0, ", about 2 h 1 min left"), (86_400.0, ", about 24 h 0 min left"),
    ],
)  # fmt: skip
def test_time_is_said_as_people_say_it(seconds: float | None, text: str) -> None:
    assert time_left(seconds) == text


def test_a_line_of_progress_says_it(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    now = iter([0.0, 20.0])
    monkeypatch.setattr("daemon.cli.output.time.monotonic", lambda: next(now))
    with live_progress() as show:
        show("training", 0, 4000, {})
        show("training", 100, 4000, {"loss": 1.0})
    assert capsys.readouterr().err.splitlines() == ["training 0/4000", "training 100/4000, about 13 min left loss 1"]
