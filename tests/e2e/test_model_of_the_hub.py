"""Two commands from a model of the hub to masks: `mfmd init --from-model ID`, then `mfmd run`."""

from io import BytesIO
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image
from transformers import SegformerConfig, SegformerForSemanticSegmentation

from configs.class_list import load_class_list
from daemon.cli import main
from daemon.demo.driving import DrivenDaemon
from tests.adapters.checkpoints.local_hub import Repository, use_hub


def files(folder: Path) -> dict[str, bytes]:
    """The files of a tiny SegFormer of ADE20K whose main has a pickle alone, and of its conversion."""
    names = {index: entry["name"] for index, entry in enumerate(load_class_list("ade20k"))}
    sizes = {"hidden_sizes": [8, 16, 40, 64], "depths": [1, 1, 1, 1], "decoder_hidden_size": 16}
    SegformerForSemanticSegmentation(SegformerConfig(**sizes, id2label=names)).save_pretrained(folder)
    processor = b'{"image_processor_type": "SegformerImageProcessor", "size": {"height": 64, "width": 96}}'
    return {
        "config.json": (folder / "config.json").read_bytes(), "preprocessor_config.json": processor,
        "model.safetensors": (folder / "model.safetensors").read_bytes(), "pytorch_model.bin": b"never read",
    }  # fmt: skip


@pytest.mark.timeout(180)
def test_two_commands_from_a_hub_id_to_masks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    converted = files(tmp_path / "saved")
    config, photo = tmp_path / "mfmd.yaml", tmp_path / "photo.png"
    with use_hub(tmp_path / "hub", monkeypatch) as hub:
        repository = hub.repositories["street/ade"] = Repository()
        repository.commit("weights", {name: converted[name] for name in converted if name != "model.safetensors"})
        commit = repository.request(converted)
        assert main(["init", str(tmp_path / "drop"), "--from-model", "street/ade", "--config", str(config)]) == 0
    text = config.read_text(encoding="utf-8").replace("port: 8009", "port: 0").replace("port: 8008", "port: 0")
    config.write_text(f"{text}\nobserve: {{enabled: false}}\n", encoding="utf-8")
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 72, 3), np.uint8)).save(photo)
    with DrivenDaemon(config) as driven:
        assert f"street/ade at {commit} (refs/pr/1)" in driven.registry.history()[0].reason
        driven.wait_until_serving(1, 90)
        driven.drop([photo])
        driven.wait_until_committed(1, 60)
        answer = httpx.post(f"{driven.url('serve')}/v1/segment", content=photo.read_bytes())
        mask = np.asarray(Image.open(BytesIO(answer.content)))
        assert answer.headers["x-checkpoint-version"] == "1" and mask.shape == (48, 72) and mask.max() < 150
        assert httpx.get(f"{driven.url('serve')}/v1/classes").json()["classes"][149]["name"] == "flag"
        assert driven.stop() == 0
