"""Fixtures of the tests of masks as files."""

from pathlib import Path

import pytest

from tests.daemon.masks.masks_world import Folders
from tests.daemon.serving.serving_world import World


@pytest.fixture
def world(tmp_path: Path) -> World:
    """An empty state directory."""
    return World(tmp_path)


@pytest.fixture
def folders(world: World) -> Folders:
    world.add(1)
    return Folders(world)
