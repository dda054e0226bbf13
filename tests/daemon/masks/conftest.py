"""Fixtures of the tests of masks as files."""

from pathlib import Path

import pytest

from tests.daemon.serving.serving_world import World


@pytest.fixture
def world(tmp_path: Path) -> World:
    """An empty state directory."""
    return World(tmp_path)
