"""docs/how-to/python.md: its examples run as written beside a real state directory and a real inference plane."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from configs.load import load_settings
from tests.daemon.cli.test_cli_adapt import _fill_buffer, adaptable  # noqa: F401  # the fixture
from tests.daemon.serving.serving_world import running
from tests.sections import changed

PAGE = Path(__file__).parents[3] / "docs/how-to/python.md"
EXAMPLES = ("settings", "buffer", "xarray", "version", "network", "server", "round", "past")


def run(*names: str, address: str = "") -> dict[str, Any]:
    """The variables after these examples, one after another."""
    blocks = dict(zip(EXAMPLES, re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL), strict=True))
    variables: dict[str, Any] = {}
    for name in names:
        code = blocks[name].replace("http://127.0.0.1:8009", address) if address else blocks[name]
        exec(compile(code, f"{PAGE.name}, {name}", "exec"), variables)
    return variables


def test_buffer_version_and_server(adaptable: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    torch.set_num_threads(1)
    _fill_buffer(adaptable)
    monkeypatch.chdir(adaptable.parent)
    settings = load_settings(adaptable)
    serving = changed(settings.serving, enabled=True, port=0, device="cpu", threads=1)
    with running(settings.model_copy(update={"serving": serving})) as served:
        served.wait_for(1)
        found = run(*EXAMPLES[:6], address=str(served.client.base_url).rstrip("/"))
    assert found["newest"].shape == (32, 32, 3) and found["mean_color"].shape == (3,)
    assert np.isclose(found["mean_color"].values.mean(), 127, atol=20)
    assert found["names"] == [entry.name for entry in settings.classes]
    assert found["logits"].shape == (1, len(settings.classes), 32, 32) and len(found["maps"]) == 2
    assert np.array_equal(found["labels"], found["served"]) and found["version"] == 1
    assert np.array_equal(found["labels"], found["logits"][0].argmax(0).numpy())


@pytest.mark.nightly
def test_a_round_and_its_verdict(adaptable: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    _fill_buffer(adaptable)
    monkeypatch.chdir(adaptable.parent)
    found = run("settings", "round", "past")
    assert found["decisions"] == {1: found["verdict"]["decision"]} and found["verdict"]["reason"]
