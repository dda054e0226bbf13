"""Mask transformers: the map that transformers itself gives, gradients, the cut, refusals."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from adapters.errors import UnsupportedModel
from adapters.networks.huggingface.eomt import MASK_FIELD
from adapters.networks.huggingface.models import build_huggingface, load_huggingface
from adapters.networks.huggingface.queries import LEAST, pixel_logits
from adapters.networks.network import SegmentationNetwork
from configs.network import Architecture
from tests.adapters.tiny_models import CLASSES, FEW, MASKS, NEEDS_SCIPY, answers_of, model, tell_apart

pytestmark = NEEDS_SCIPY
ROWS = [pytest.param(name, marks=[pytest.mark.nightly] * (name not in FEW)) for name in MASKS]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def split(original: Any, folder: Path) -> SegmentationNetwork:
    original.save_pretrained(folder / "model")
    settings = Architecture(name="huggingface", hf_config=original.config.to_dict())
    return load_huggingface(folder / "model", settings, CLASSES).eval()


@pytest.mark.parametrize("name", ROWS)
@torch.no_grad()
def test_the_map_is_the_one_of_transformers(name: str, tmp_path: Path) -> None:
    """Class by class, on an image of the model's size; another class only where two are equal within rounding."""
    original, images = model(name), torch.randn(1, 3, 96, 96)
    images += 3.0 * F.interpolate(torch.randn(1, 3, 6, 6), (96, 96))
    tell_apart(original, images)
    found = split(original, tmp_path)(images).argmax(1)
    answers = answers_of(original, images)
    theirs = torch.stack([item.segmentation for item in answers])
    assert len(theirs.unique()) >= 3, "a map of one class shows nothing"
    scores = torch.stack([item.segmentation_scores for item in answers]).topk(2, dim=1).values
    other = found != theirs
    assert (scores[:, 0] - scores[:, 1])[other].lt(1e-5).all()
    assert other.float().mean() < 0.001


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_gradients_are_finite_where_no_query_claims_a_pixel(precision: torch.dtype) -> None:
    classes = torch.randn(1, 3, CLASSES + 1).to(precision).requires_grad_()
    masks = torch.full((1, 3, 8, 8), -200.0, dtype=precision).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = pixel_logits(classes, masks)
    assert logits.dtype == torch.float32 and logits.isfinite().all()
    F.cross_entropy(logits, torch.zeros(1, 8, 8, dtype=torch.long)).backward()
    assert classes.grad is not None and classes.grad.isfinite().all()
    assert masks.grad is not None and masks.grad.isfinite().all()


def test_sums_far_below_one_keep_their_order() -> None:
    """A pixel that every query rejects still has the class of the query that rejects it least."""
    masks = torch.tensor([-30.0, -28.0]).view(1, 2, 1, 1)
    classes = torch.tensor([[[9.0, 0.0, 0.0], [0.0, 9.0, 0.0]]])
    logits = pixel_logits(classes, masks).flatten()
    assert logits.argmax() == 1 and logits.min() > torch.tensor(LEAST).log()


@pytest.mark.parametrize("name", ["eomt", pytest.param("eomt_dinov3", marks=pytest.mark.nightly)])
@torch.no_grad()
def test_masked_cells_of_eomt_lose_the_summary_too(name: str, tmp_path: Path) -> None:
    """One map; each cell has a copy of the other tokens, and nothing that passes the map knows them."""
    network = split(model(name), tmp_path)
    (level,) = network.encode(torch.randn(1, 3, 96, 96))
    width = level.shape[1] // 4  # patches, a class token, two registers
    assert torch.equal(level[:, width:], level[:, width:, :1, :1].expand(-1, -1, 6, 6))
    blank = [torch.zeros_like(level)]
    other = split(model(name), tmp_path)
    other.encode(torch.randn(1, 3, 96, 96) * 5)
    assert torch.equal(network.decode(blank, (96, 96)), other.decode(blank, (96, 96)))
    assert torch.equal(network.decode([level], (96, 96)), other.decode([level], (96, 96)))


@torch.no_grad()
def test_positions_of_eomt_dinov3_are_not_drawn_in_training(tmp_path: Path) -> None:
    """The configuration asks for a random scale in each pass; the halves would draw two."""
    original = model("eomt_dinov3")
    assert original.config.pos_embed_rescale == 2.0
    network = split(original, tmp_path).train()
    images = torch.randn(1, 3, 64, 96)
    assert torch.equal(network(images), network(images))


def test_eomt_in_the_middle_of_its_annealing_is_refused(tmp_path: Path) -> None:
    original = model("eomt")
    original.attn_mask_probs.fill_(0.5)
    with pytest.raises(UnsupportedModel, match=rf"{MASK_FIELD} is \[0\.5, 0\.5\].*at random"):
        split(original, tmp_path)


@pytest.mark.parametrize("blocks", [0, 4, 5])
def test_eomt_without_blocks_on_both_sides_of_the_cut_is_refused(blocks: int) -> None:
    config = {**model("eomt").config.to_dict(), "num_blocks": blocks}
    with pytest.raises(UnsupportedModel, match=r"config\.json: num_blocks"):
        build_huggingface(Architecture(name="huggingface", hf_config=config), CLASSES)


def test_without_scipy_the_message_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    config = model("mask2former").config.to_dict()
    monkeypatch.setattr("adapters.networks.huggingface.models.find_spec", lambda name: None)
    with pytest.raises(UnsupportedModel, match=r"mask2former.*scipy.*pip install 'mfmd\[masks\]'"):
        build_huggingface(Architecture(name="huggingface", hf_config=config), CLASSES)


@pytest.mark.parametrize("change", [{"conv_dim": 64}, {"enforce_input_proj": True}, {"task_seq_len": 6}])
def test_oneformer_that_transformers_cannot_keep_or_ask_is_refused(change: dict[str, Any]) -> None:
    config = {**model("oneformer").config.to_dict(), **change}
    with pytest.raises(UnsupportedModel, match=rf"config\.json: .*{next(iter(change))}"):
        build_huggingface(Architecture(name="huggingface", hf_config=config), CLASSES)


def test_mask2former_leaves_no_layer_out_in_training() -> None:
    """transformers leaves each out with the probability of dropout; processes would leave out different ones."""
    config = {**model("mask2former").config.to_dict(), "dropout": 0.99}
    network, _ = build_huggingface(Architecture(name="huggingface", hf_config=config), CLASSES)
    images = torch.randn(1, 3, 64, 64)
    F.cross_entropy(network.train()(images), torch.zeros(1, 64, 64, dtype=torch.long)).backward()
    assert [key for key, value in network.named_parameters() if value.requires_grad and value.grad is None] == []


def test_mask2former_sees_sides_that_its_processor_makes() -> None:
    config = model("mask2former").config.to_dict()

    def finest(**processor: Any) -> torch.Size:
        processor["image_processor_type"] = "Mask2FormerImageProcessor"
        settings = Architecture(name="huggingface", hf_config=config, hf_preprocessor=processor)
        network, _ = build_huggingface(settings, CLASSES)
        return network.encode(torch.randn(1, 3, 64, 85))[0].shape[-2:]

    assert finest() == (16, 24) and finest(size_divisor=8) == (16, 22)
    assert finest(do_resize=False) == finest(size_divisor=None) == (16, 22), "the backbone pads 85 pixels itself"
    for odd in (-1, "32", True, 10**6):
        with pytest.raises(UnsupportedModel, match=r"preprocessor_config\.json: size_divisor is"):
            finest(size_divisor=odd)
