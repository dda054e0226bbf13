"""What every test shares: one CPU thread for tensors (tests run two at a time), no hub, no settings from outside."""

import os
from collections.abc import Iterator

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A developer's own MFMD_ variables must not reach a test."""
    for name in [name for name in os.environ if name.startswith("MFMD_")]:
        monkeypatch.delenv(name)
    yield
