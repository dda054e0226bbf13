"""Kills at random moments, a few here; `make soak` does a thousand, from another seed each time."""

from pathlib import Path

import pytest

from tests.faults.kill_loop import kill_again_and_again


@pytest.mark.disk
def test_kills_lose_nothing(tmp_path: Path):
    kill_again_and_again(tmp_path, kills=20, seed=4)
