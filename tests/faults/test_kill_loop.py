"""Fifty kills at random moments; `make soak` does a thousand, from another seed each time."""

from pathlib import Path

import pytest

from tests.faults.kill_loop import kill_again_and_again


@pytest.mark.disk
def test_fifty_kills_lose_nothing(tmp_path: Path):
    kill_again_and_again(tmp_path, kills=50, seed=4)
