"""Fixtures of the inference plane's tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from daemon.serving.plane import InferencePlane
from tests.daemon.serving.serving_world import Served, World, image_bytes, running


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def world(tmp_path: Path) -> World:
    """An empty state directory."""
    return World(tmp_path)


@pytest.fixture
def served(world: World) -> Iterator[Served]:
    """A plane that serves version 1."""
    version = world.add(1)
    with running(world.settings()) as plane:
        plane.wait_for(version)
        yield plane


@pytest.fixture
def plane(world: World) -> Iterator[InferencePlane]:
    """A plane whose follower looks only when a test makes it."""
    made = InferencePlane(world.settings())
    made.batcher.start()
    yield made
    made.stop()


@pytest.fixture(scope="module")
def shared_world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A state directory with version 1, for tests that change nothing."""
    world = World(tmp_path_factory.mktemp("shared"))
    world.add(1)
    return world


@pytest.fixture(scope="module")
def shared(shared_world: World) -> Iterator[Served]:
    """A plane on it, for tests that only ask; it must be as it was after all of them."""
    torch.set_num_threads(1)
    with running(shared_world.settings()) as plane:
        plane.wait_for(1)
        yield plane
        assert plane.segment(image_bytes()).status_code == 200
        plane.assert_idle()
        assert plane.plane.slots.versions == (1,)
