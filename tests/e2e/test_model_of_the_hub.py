"""A model of the hub to masks and a judged round by the tutorial's commands, for a SegFormer and mask transformers."""

import os
import re
import shlex
import subprocess
from io import BytesIO
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from configs.class_list import load_class_list
from daemon.cli import main
from daemon.demo.conditions import DUSK
from daemon.demo.driving import DrivenDaemon
from daemon.demo.scenes import write_scene
from daemon.runtime.process_group import PYTHON
from tests.adapters.checkpoints.local_hub import Hub, Repository, use_hub
from tests.adapters.tiny_models import NEEDS_SCIPY, model

PAGE = Path(__file__).parents[2] / "docs/tutorial/own-folder.md"
PROCESSORS = {
    "segformer": '{"image_processor_type": "SegformerImageProcessor", "size": {"height": 64, "width": 96}}',
    "mask2former": '{"image_processor_type": "Mask2FormerImageProcessor", "size": {"shortest_edge": 64, '
    '"longest_edge": 96}}',
    "eomt": '{"image_processor_type": "EomtImageProcessor", "size": {"shortest_edge": 64, "longest_edge": 64}}',
}


def files(kind: str, classes: str, folder: Path) -> dict[str, bytes]:
    """The files of a tiny model of that kind with a known data set's classes, and what main may hold beside them."""
    original = model(kind)
    original.config.id2label = {index: entry["name"] for index, entry in enumerate(load_class_list(classes))}
    type(original)(original.config).save_pretrained(folder)
    return {
        "config.json": (folder / "config.json").read_bytes(), "preprocessor_config.json": PROCESSORS[kind].encode(),
        "model.safetensors": (folder / "model.safetensors").read_bytes(), "pytorch_model.bin": b"never read",
    }  # fmt: skip


def published(hub: Hub, found: dict[str, bytes], *, converted: bool) -> str:
    """Put a model on the hub, by a conversion request or on main; return what the history must say of it."""
    repository = hub.repositories["street/model"] = Repository()
    if converted:
        repository.commit("weights", {name: found[name] for name in found if name != "model.safetensors"})
        return f"street/model at {repository.request(found)} (refs/pr/1)"
    return f"street/model at {repository.commit('weights', found)}"


def said_by_the_page() -> list[str]:
    """The words of the tutorial's command for a ready model, after `mfmd`."""
    section = PAGE.read_text(encoding="utf-8").partition("## With a ready model")[2]
    command = section.partition("```\n")[2].partition("```")[0].replace("organisation/name", "street/model")
    return shlex.split(command, comments=True)[1:]


def run_init(hub: Hub, folder: Path, *, apart: bool) -> None:
    """Run the tutorial's command in `folder`; `apart` in a process of its own, as a user does."""
    words = said_by_the_page()
    if not apart:
        assert main(words) == 0
        return
    cache = {"HF_ENDPOINT": hub.url, "HF_HUB_CACHE": str(folder / "hub"), "HF_HUB_OFFLINE": "0"}
    done = subprocess.run(
        [*PYTHON, "-m", "daemon.cli", *words], env=os.environ | cache, cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "It serves. Next: mfmd run" in done.stdout


def to_a_verdict(driven: DrivenDaemon, folder: Path) -> str:
    """Drop images, run a round as the page says; return what `mfmd adapt` printed."""
    images = [write_scene(folder / "camera", DUSK, seed, False, 48, 72) for seed in range(16)]
    driven.drop(images)
    driven.wait_until_committed(16, 60)
    done = driven.run_command("adapt")
    assert done.returncode in (0, 3), done.stderr
    verdict, scores = driven.round(1).verdict(), driven.round(1).scores()
    assert f"Round 1: {verdict.decision}" in done.stdout and scores.status == "completed"
    assert {"holdout_bursts", "vote_flip"} <= {check.name for check in verdict.checks}
    return done.stdout


@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    ("kind", "classes"),
    [
        ("segformer", "ade20k"),
        pytest.param("mask2former", "cityscapes", marks=[NEEDS_SCIPY, pytest.mark.nightly]),
        pytest.param("eomt", "ade20k", marks=[NEEDS_SCIPY, pytest.mark.nightly]),
    ],
)
def test_a_hub_id_to_masks_and_a_verdict(
    kind: str, classes: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    first, names = kind == "segformer", [entry["name"] for entry in load_class_list(classes)]
    with use_hub(tmp_path / "hub", monkeypatch) as hub:
        told = published(hub, files(kind, classes, tmp_path / "saved"), converted=first)
        run_init(hub, tmp_path, apart=not first)
    config, photo = tmp_path / "mfmd.yaml", tmp_path / "photo.png"
    text = re.sub(r"port: \d+", "port: 0", config.read_text(encoding="utf-8"))
    text = re.sub(r"  steps: \d+", "  steps: 2\n  device: cpu", text)  # "fewer `steps` of `round`", says the page
    config.write_text(f"{text}\nobserve: {{enabled: false}}\n", encoding="utf-8")
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 72, 3), np.uint8)).save(photo)
    with DrivenDaemon(config) as driven:
        assert told in driven.registry.history()[0].reason
        driven.wait_until_serving(1, 90)
        answer = httpx.post(f"{driven.url('serve')}/v1/segment", content=photo.read_bytes())
        mask = np.asarray(Image.open(BytesIO(answer.content)))
        assert answer.headers["x-checkpoint-version"] == "1" and mask.shape == (48, 72) and mask.max() < len(names)
        assert httpx.get(f"{driven.url('serve')}/v1/classes").json()["classes"][-1]["name"] == names[-1]
        said = to_a_verdict(driven, tmp_path)
        assert ("recipe.threshold is 0.968" in said) == (driven.round(1).kept_ratio() == 0.0)
        assert not first or "A lower one lets the round learn" in said, "150 classes of a drawn model: nothing is sure"
        assert "round 1" in driven.run_command("status").stdout
        assert driven.stop() == 0
