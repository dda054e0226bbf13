"""Daemons that end in mid-round, by SIGKILL and by SIGTERM: the next one goes on with the round, to its verdict."""

from pathlib import Path

import pytest
import yaml

from daemon.demo.driving import DrivenDaemon
from daemon.runtime.process_group import children_of

pytestmark = pytest.mark.disk
STEPS = 60


def saved(driven: DrivenDaemon, start: int) -> int | None:
    """Step of round 1's newest state once its given start (from 1) has got further than it began."""
    folder = driven.round(1)
    starts = folder.record().starts if folder else ()
    steps = folder.states.steps() if folder else []
    return steps[-1] if len(starts) >= start and steps and steps[-1] > starts[start - 1].step else None


@pytest.mark.timeout(600)
def test_a_round_outlives_two_daemons(untrained: DrivenDaemon, camera: list[Path]) -> None:
    config = yaml.safe_load(untrained.config.read_text())
    config["round"] |= {"steps": STEPS, "max_seconds": 900}
    config["round"]["advanced"] |= {"save_steps": 5}
    config["serving"]["enabled"], config["observe"] = False, {"enabled": False}  # three times loaded, asked nothing
    untrained.config.write_text(yaml.safe_dump(config))
    untrained.start()
    untrained.drop(camera)
    first = untrained.wait_for(lambda: saved(untrained, 1), "the first state", 120)

    assert untrained.process is not None
    untrained.process.kill()
    untrained.process.wait()
    # A machine that goes down takes the round with it; here the leftover is the next daemon's to end.
    assert any("adapters.round" in child.cmdline() for child in children_of(untrained.layout))
    untrained.layout.run_file("daemon").unlink()
    untrained.start()
    second = untrained.wait_for(lambda: saved(untrained, 2), "a state of the second daemon", 120)

    assert untrained.stop() == 0
    folder = untrained.round(1)
    assert folder.verdict() is None and folder.record().stage in ("suspended", "training")
    assert folder.scores() is None or folder.scores().status == "stopped", "none if the grace period was too short"
    stopped_at = folder.states.steps()[-1]
    assert stopped_at >= second
    untrained.start()
    verdict = untrained.follow_round(1, 200)
    assert verdict.decision in ("accepted", "rejected", "inconclusive")
    assert (folder.scores().status, folder.scores().steps) == ("completed", STEPS)
    starts = [start.step for start in folder.record().starts]
    assert starts[0] == 0 and first <= starts[1] < STEPS and starts[2:] == [stopped_at]
    assert folder.log.read_text().count("resumes after step") == 2
    assert untrained.rounds.numbers() == [1]
