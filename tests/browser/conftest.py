"""A real daemon with three versions, and Chromium to look at its page. Without a browser these tests are skipped."""

import shutil
import socket
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest
from playwright.sync_api import Browser, BrowserContext, sync_playwright

from storage.layout import StateLayout
from storage.registry.registry import CheckpointRegistry
from tests.daemon.conftest import add_small_version, small_settings, write_config
from tests.daemon.running import Running

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PATIENCE = 20_000
"""Longest wait for something to show (milliseconds)."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs a browser where there is none."""
    if CHROMIUM is None:
        for item in items:
            if "tests/browser/" in item.path.as_posix():
                item.add_marker(pytest.mark.skip(reason="no Chromium on this machine (apt-get install chromium)"))


@pytest.fixture(scope="module")
def daemon(tmp_path_factory) -> Iterator[SimpleNamespace]:
    """`mfmd run` with versions 1 to 3, the last of which serves, on one port, also after a restart."""
    folder = tmp_path_factory.mktemp("browser")
    layout = StateLayout(folder / "state")
    layout.create()
    (folder / "drop").mkdir()
    registry = CheckpointRegistry(layout.checkpoints)
    for parent in (None, 1, 2):
        add_small_version(registry, parent)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    config = write_config(folder / "mfmd.yaml", small_settings(folder, control={"port": port}))
    made = SimpleNamespace(running=Running(config, layout), registry=registry, layout=layout, config=config)
    made.base, made.drop = f"http://127.0.0.1:{port}", folder / "drop"
    made.token = layout.token_file.read_text().strip()
    yield made
    assert made.running.stop()[0] == 0


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium without a window; Playwright's event loop would run on under the tests of other modules."""
    with sync_playwright() as playwright:
        made = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield made
        made.close()


@pytest.fixture
def open_context(browser: Browser, daemon: SimpleNamespace) -> Iterator[Callable[..., BrowserContext]]:
    """Open windows on the page; at the end none of them wrote an error to the console."""
    opened, errors = [], []

    def make(width: int = 1200, **options) -> BrowserContext:
        context = browser.new_context(base_url=daemon.base, viewport={"width": width, "height": 900}, **options)
        context.set_default_timeout(PATIENCE)
        context.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        context.on("weberror", lambda error: errors.append(str(error.error)))
        opened.append(context)
        return context

    def expect_errors(words: str, *may_be: str) -> None:
        """Forget errors with `words`, of which there must be one, and those that chance decides; others stay errors."""
        assert any(words in line for line in errors), errors
        errors[:] = [line for line in errors if not any(known in line for known in (words, *may_be))]

    make.expect_errors = expect_errors
    yield make
    for context in opened:
        context.close()
    assert not errors
