"""Every preset loads, fits together, and says what the papers say."""

from pathlib import Path

import pytest

from configs.load import load_settings
from configs.settings import Settings

FOLDER = Path(__file__).parents[2] / "configs" / "presets"
PRESETS = sorted(FOLDER.glob("*.yaml"))
PAPER_PRESETS = ("gta2cityscapes_dacs_deeplabv2", "gta2cityscapes_daformer", "gta2cityscapes_mic_daformer")
THINGS = {6, 7, 11, 12, 13, 14, 15, 16, 17, 18}
"""Train ids of Cityscapes' countable classes."""


def _load(name: str) -> Settings:
    return load_settings(FOLDER / f"{name}.yaml")


def test_the_presets_of_the_issue_are_there() -> None:
    assert {path.stem for path in PRESETS} >= {"demo", "camvid_day2dusk", *PAPER_PRESETS}


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_preset_is_consistent(path: Path) -> None:
    settings = load_settings(path)
    buffer, mfm = settings.buffer, settings.mfm
    assert settings.source is not None
    assert settings.watch.folder.parent == path.parent.resolve(), "paths are relative to the file"
    assert mfm.ablation.dim % 4 == 0 and mfm.ablation.dim % mfm.ablation.heads == 0
    assert settings.round.crop_height <= buffer.height and settings.round.crop_width <= buffer.width
    assert settings.pretrain.crop_height <= buffer.height and settings.pretrain.crop_width <= buffer.width
    assert settings.schedule.min_frames <= settings.schedule.new_frames <= buffer.capacity_frames
    assert settings.network.name != "huggingface"
    assert settings.network.encoder.startswith("mit") == (settings.network.name == "daformer")


@pytest.mark.parametrize("name", PAPER_PRESETS)
def test_paper_preset_has_the_constants_of_the_papers(name: str) -> None:
    settings = _load(name)
    assert (settings.mfm.mask_ratio, settings.mfm.ablation.grid, settings.mfm.ablation.dim) == (0.4, 16, 512)
    assert (settings.mfm.ablation.blocks, settings.mfm.ablation.heads, settings.mfm.weight) == (2, 16, 1.0)
    assert settings.mfm.learning_rate == 2e-4
    assert (settings.round.crop_height, settings.round.crop_width, settings.round.batch_size) == (512, 512, 2)
    assert (settings.round.steps, settings.round.optim.learning_rate) == (40_000, 6e-5)
    assert (settings.round.optim.advanced.warmup_steps, settings.round.optim.advanced.power) == (1500, 1.0)
    assert (settings.round.optim.head_multiplier, settings.round.optim.advanced.weight_decay) == (10.0, 0.01)
    assert (settings.buffer.height, settings.buffer.width) == (512, 1024)
    assert (settings.recipe.threshold, settings.recipe.jitter) == (0.968, 0.2)
    assert (settings.recipe.advanced.jitter_probability, settings.recipe.advanced.blur_probability) == (0.8, 0.5)
    assert settings.source is not None and settings.source.label_suffix == "_labelTrainIds"
    assert len(settings.classes) == 19


def test_each_paper_preset_has_its_own_network_and_teacher() -> None:
    dacs, daformer = _load("gta2cityscapes_dacs_deeplabv2"), _load("gta2cityscapes_daformer")
    assert (dacs.network.name, dacs.network.encoder, dacs.recipe.ema_decay) == ("deeplabv2", "resnet101", 0.99)
    assert (daformer.network.name, daformer.network.encoder, daformer.recipe.ema_decay) == ("daformer", "mit_b5", 0.999)
    assert dacs.network.advanced.output_stride == 8
    assert [_load(name).recipe.name for name in PAPER_PRESETS] == ["dacs", "daformer", "mic"]


def test_dacs_preset_has_no_extras() -> None:
    recipe = _load("gta2cityscapes_dacs_deeplabv2").recipe
    assert recipe.advanced.classmix
    assert recipe.advanced.source_jitter == 0.0
    assert recipe.anchor_weight is None, "with source images: no pull"
    assert recipe.margin_top == recipe.margin_bottom == recipe.margin_left == recipe.margin_right == 0.0


@pytest.mark.parametrize("name", PAPER_PRESETS[1:])
def test_daformer_and_mic_presets_have_what_is_published(name: str) -> None:
    settings = _load(name)
    recipe, classes = settings.recipe, [entry.name for entry in settings.classes]
    assert (recipe.rare_class_sampling, recipe.advanced.rare_class_temperature) == (True, 0.01)
    assert (recipe.feature_distance_weight, recipe.advanced.feature_distance_share) == (0.005, 0.75)
    assert recipe.advanced.feature_distance_from == "pretrained" and settings.network.pretrained is not None
    assert {classes.index(thing) for thing in recipe.thing_classes} == THINGS
    assert (recipe.margin_top * 512, recipe.margin_bottom * 512) == (15, 120)


def test_mic_preset_masks_blocks_of_32() -> None:
    mic, daformer = (_load(f"gta2cityscapes_{name}").recipe for name in ("mic_daformer", "daformer"))
    assert (mic.masked_image_weight, mic.advanced.masked_image_block * 512, mic.advanced.masked_image_ratio) == (
        1.0,
        32,
        0.7,
    )
    assert (mic.margin_of, mic.margin_left * 1024, mic.margin_right * 1024) == ("image", 15, 15)
    assert daformer.margin_of == "crop"


def test_hrda_preset_has_the_constants_of_the_paper() -> None:
    settings = _load("gta2cityscapes_hrda")
    network, recipe, pretrain, round_ = settings.network, settings.recipe, settings.pretrain, settings.round
    assert (network.name, network.encoder, network.multi_resolution) == ("daformer", "mit_b5", True)
    assert (settings.buffer.height, settings.buffer.width) == (1024, 2048)
    assert (pretrain.crop_height, pretrain.crop_width) == (round_.crop_height, round_.crop_width) == (1024, 1024)
    assert (round_.steps, round_.batch_size, round_.optim.learning_rate) == (40_000, 2, 6e-5)
    assert (round_.optim.advanced.warmup_steps, round_.optim.head_multiplier, round_.optim.advanced.weight_decay) == (
        1500,
        10.0,
        0.01,
    )
    assert (recipe.name, recipe.ema_decay, recipe.threshold) == ("hrda", 0.999, 0.968)
    assert (recipe.advanced.rare_class_temperature, recipe.feature_distance_weight) == (0.01, 0.005)
    assert recipe.rare_class_sampling and recipe.advanced.feature_distance_from == "pretrained"
    assert recipe.advanced.rare_class_image_share == pytest.approx(3000 / (1914 * 1052), rel=0.01)
    assert recipe.advanced.rare_class_crop_share == pytest.approx(6000 / 1024**2, rel=0.01)
    names = [entry.name for entry in settings.classes]
    assert [names.index(name) for name in recipe.thing_classes] == [6, 7, 11, 12, 13, 14, 15, 16, 17, 18]
    assert recipe.margin_of == "image"
    assert [round(1024 * share) for share in (recipe.margin_top, recipe.margin_bottom)] == [30, 240]
    assert [round(2048 * share) for share in (recipe.margin_left, recipe.margin_right)] == [30, 30]
    assert (settings.mfm.mask_ratio, settings.mfm.ablation.grid, settings.mfm.learning_rate) == (0.4, 16, 2e-4)


def test_camvid_preset_works_at_two_thirds_of_the_size() -> None:
    settings = _load("camvid_day2dusk")
    assert [item.name for item in settings.classes][:4] == ["sky", "building", "pole", "road"]
    assert (settings.buffer.height, settings.buffer.width) == (240, 320)
    assert settings.round.device == "auto"


def test_demo_preset_takes_no_fixed_port() -> None:
    settings = _load("demo")
    assert settings.serving.port == settings.control.port == 0
    assert 6 <= len(settings.classes) <= 8


def test_vfmuda_preset_has_the_constants_of_the_paper() -> None:
    settings = _load("gta2cityscapes_vfmuda")
    network, recipe, optim = settings.network, settings.recipe, settings.round.optim
    assert (network.name, network.encoder) == ("pyramid", "dinov2_adapter_base")
    assert (settings.round.crop_height, settings.round.crop_width, settings.round.batch_size) == (1024, 1024, 8)
    assert optim == settings.pretrain.optim
    assert optim.learning_rate == pytest.approx(0.1 * 5e-5 * 8**0.5, rel=1e-3)
    assert (optim.head_multiplier, optim.advanced.layer_decay) == (10.0, 0.9)
    assert (optim.advanced.warmup_steps, optim.advanced.weight_decay, optim.advanced.power) == (1500, 0.01, 1.0)
    assert (settings.round.steps, recipe.ema_decay, recipe.threshold) == (40_000, 0.999, 0.968)
    assert recipe.feature_distance_weight == 0.0 and recipe.rare_class_sampling and recipe.margin_of == "image"
    assert recipe.margin_top == recipe.margin_left == recipe.margin_right == 0.03 and recipe.margin_bottom == 0.25
    assert recipe.masked_image_weight == 1.0 and recipe.advanced.masked_image_ratio == 0.7
    assert recipe.advanced.masked_image_block == pytest.approx(64 / 1120, rel=0.01)
    foundation = recipe.advanced.foundation
    assert foundation.enabled and (foundation.tokens, foundation.ratio) == (29, 0.0)
    assert foundation.weight == foundation.source_weight == 0.1


def test_fewshot_preset_has_the_constants_of_the_paper() -> None:
    settings = _load("fundus_fewshot")
    tokens, recipe, optim = settings.network.advanced.tokens, settings.recipe, settings.round.optim
    assert (tokens.length, tokens.rank, tokens.scale, tokens.head_width) == (100, 16, 0.001, 64)
    assert (recipe.name, settings.round.batch_size, optim.advanced.power) == ("mfm_da", 8, 0.9)
    assert settings.pretrain.optim.learning_rate == 1e-3 and settings.network.pretrained is not None
    held = settings.buffer.holdout_fraction * settings.schedule.min_frames
    assert settings.schedule.min_frames - round(held) == recipe.least_frames() == 10
    assert settings.round.crop_height == settings.buffer.height, "whole photographs"
