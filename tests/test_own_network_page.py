"""The page "Use a network of your own" holds: its U-Net keeps the contract, is trained, and a round adapts it."""

import importlib
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
import yaml

from adapters.checkpoints.checkpoint import load_version
from adapters.networks.own import OwnNetwork
from adapters.rounds.source_training import pretrain
from daemon.demo.conditions import DAY, DUSK
from daemon.demo.driving import DrivenDaemon
from daemon.rounds.environment import round_environment
from daemon.runtime.process_group import PYTHON
from storage.registry.registry import CheckpointRegistry
from tests.adapters.conftest import TrainingState
from tests.e2e.conftest import SETTINGS, draw
from tests.test_extending import ROOT, steps, take

PAGE = ROOT / "docs/how-to/own-network.md"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on the path of Python with the files of the page."""
    torch.set_num_threads(1)
    project = tmp_path / "project"
    for folder in ("my_package", "tests"):
        (project / folder).mkdir(parents=True)
    (project / "my_package/__init__.py").touch()
    for step in steps(PAGE):
        take(step, project)
    monkeypatch.syspath_prepend(project)
    yield project
    importlib.invalidate_caches()


def named_by_the_page() -> dict[str, Any]:
    """The settings that the page gives."""
    text = PAGE.read_text(encoding="utf-8")
    named: dict[str, Any] = yaml.safe_load(text.partition("```yaml\n")[2].partition("```")[0])
    return named


def test_the_page_leads_from_a_file_to_a_judged_candidate(project: Path, tmp_path: Path) -> None:
    state = TrainingState(tmp_path)
    settings = state.settings(**named_by_the_page())
    state.draw_source()
    manifest = pretrain(settings)
    assert manifest.network["options"] == {"width": 8}
    state.fill_buffer(settings)
    folder = state.spec(settings)
    environment = round_environment(settings.round, {"PATH": "/usr/bin", "PYTHONPATH": f"{ROOT}:{project}"})
    done = subprocess.run(
        [*PYTHON, "-m", "adapters.round", str(folder.spec_path)],
        env=environment,
        cwd="/",
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert folder.scores().candidate is not None and folder.candidate.exists()
    network, _ = load_version(CheckpointRegistry(state.layout.checkpoints), 1, torch.device("cpu"))
    assert isinstance(network, OwnNetwork) and manifest.network_code == network.source_digest != ""


def test_the_contract_of_the_page_passes(project: Path) -> None:
    namespace: dict[str, type] = {}
    exec((project / "tests/test_unet.py").read_text(encoding="utf-8"), namespace)
    mine = namespace["TestUNet"]()
    checks = [name for name in dir(mine) if name.startswith("test_")]
    assert len(checks) == 6
    for name in checks:
        getattr(mine, name)()


@pytest.mark.nightly
@pytest.mark.timeout(240)
def test_a_daemon_serves_the_network_of_the_page_and_judges_a_round(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Step 3 of the page with real processes: `mfmd pretrain`, `mfmd run`, `mfmd adapt`, `mfmd doctor`."""
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{project}")
    draw(tmp_path / "source", DAY, 12, labelled=True)
    sections = SETTINGS | named_by_the_page()
    sections["pretrain"] = SETTINGS["pretrain"] | {"steps": 2}
    sections["round"] = SETTINGS["round"] | {"steps": 2}
    config = tmp_path / "mfmd.yaml"
    config.write_text(yaml.safe_dump(sections), encoding="utf-8")
    driven = DrivenDaemon(config)
    pretrained = driven.run_command("pretrain")
    assert pretrained.returncode == 0, pretrained.stderr
    with driven:
        driven.wait_until_serving(1, 90)
        images = draw(tmp_path / "camera", DUSK, 16)
        driven.drop(images)
        driven.wait_until_committed(16, 60)
        done = driven.run_command("adapt")
        assert done.returncode in (0, 3) and "Round 1: " in done.stdout, done.stderr
        assert driven.round(1).scores().status == "completed"
        answer = httpx.post(f"{driven.url('serve')}/v1/segment", content=images[0].read_bytes())
        assert answer.status_code == 200 and answer.headers["x-checkpoint-version"] == str(driven.served_version())
        assert "my_package.unet:build keeps the contract" in driven.run_command("doctor").stdout
        assert driven.stop() == 0
