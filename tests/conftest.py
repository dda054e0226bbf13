"""What every test shares: one CPU thread for tensors (tests run three at a time), no hub, no settings from outside.

Temporary folders lie in memory where there is enough of it: every call is made there as on a disk, but thousands of
fsyncs need not wait for one. What a kill leaves behind is the same, and what a power cut leaves is drawn from the calls
themselves (`tests/faults/power_cut.py`). Tests marked `disk` get a real one.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import durations

MEMORY = Path("/dev/shm")
ENOUGH = 2**31
"""Free bytes that make it worth using, several times what the suite holds at once; containers often have 64 MiB."""

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"


def pytest_addoption(parser: pytest.Parser) -> None:
    """The option of `make durations`."""
    parser.addoption("--write-slow", action="store_true", help="write tests/slow.txt from the times of this run")


def pytest_configure(config: pytest.Config) -> None:
    """Before the first temporary folder is made; `--basetemp` and the variable itself say otherwise."""
    if config.getoption("--write-slow") and not hasattr(config, "workerinput"):
        config.pluginmanager.register(durations.Durations())
    if os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free >= ENOUGH:
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(MEMORY))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that took long when they were measured are `slow`, and so is what only `make nightly` runs."""
    slow = durations.listed()
    for item in items:
        if item.nodeid in slow or item.get_closest_marker("nightly"):
            item.add_marker(pytest.mark.slow)


@pytest.fixture
def tmp_path(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """pytest's own, or for tests marked `disk` a folder where the system has its temporary files."""
    if request.node.get_closest_marker("disk") is None:
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(prefix="mfmd-test-") as folder:
        yield Path(folder)


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A developer's own MFMD_ variables must not reach a test."""
    for name in [name for name in os.environ if name.startswith("MFMD_")]:
        monkeypatch.delenv(name)
    yield
