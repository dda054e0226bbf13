"""The published tables on two drawn images of each data set, in its own layout: everything but the figures."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import paper_plan
import pytest
from paper import main, report
from paper_data import DATA_SETS, find_train, find_validation
from paper_figures import SUBSETS
from paper_plan import Job, Lengths, Places, plan, target_names
from paper_rows import ROWS
from paper_run import PaperFailed, ingest_target, mean_over
from PIL import Image
from pydantic import create_model
from transformers.models.resnet.configuration_resnet import ResNetConfig
from transformers.models.resnet.modeling_resnet import ResNetModel
from transformers.models.segformer.configuration_segformer import SegformerConfig
from transformers.models.segformer.modeling_segformer import SegformerModel

from adapters.networks.encoders.dinov2 import build_dinov2
from adapters.networks.encoders.mit import MIT_SPECS
from adapters.networks.encoders.resnet import RESNET_SPECS
from configs.buffer import SourceSettings
from configs.class_list import load_class_list
from configs.network import NetworkSettings
from configs.round import RoundSettings
from configs.section import Section
from configs.settings import LogSettings, Settings
from storage.buffer.frames import FrameBuffer
from storage.layout import StateLayout
from storage.media.bounded import DecodeLimits
from storage.rounds.folder import RoundStore
from storage.source.label_file import read_label
from storage.source.label_map import LabelMap
from tests.benchmarks.paper_folders import VALUES, draw_all, draw_gta, drawn_label

LIMITS = DecodeLimits(max_bytes=10**6, max_pixels=10**6, seconds=10.0)
SHORT = Lengths(steps=2, source_steps=1, tiny=True)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All data sets; tests that change one draw their own."""
    data = tmp_path_factory.mktemp("data")
    draw_all(data)
    return data


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of the tiny MiT and ResNet, as `save_pretrained` writes them."""
    folder, spec = tmp_path_factory.mktemp("weights"), RESNET_SPECS["resnet_tiny"]
    sizes = {"num_attention_heads": [1, 2, 5, 8], "mlp_ratios": [4, 4, 4, 4], **MIT_SPECS["mit_tiny"]}
    SegformerModel(SegformerConfig(**sizes)).save_pretrained(folder / "mit-tiny")
    shape = {"embedding_size": spec.stem, "hidden_sizes": [*spec.widths], "depths": [*spec.depths]}
    ResNetModel(ResNetConfig(layer_type="basic", **shape)).save_pretrained(folder / "resnet-tiny")
    return folder


@pytest.fixture(scope="module")
def all_weights(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same and those of the tiny DINOv2."""
    folder = tmp_path_factory.mktemp("all")
    shutil.copytree(weights, folder, dirs_exist_ok=True)
    build_dinov2("dinov2_tiny", None, pyramid=False).model.save_pretrained(folder / "dinov2-tiny")
    return folder


def places(drawn: Path, tmp_path: Path) -> Places:
    return Places(drawn, tmp_path / "weights", tmp_path / "work")


@pytest.mark.parametrize("name", VALUES)
def test_every_label_value_is_its_class(drawn: Path, tmp_path: Path, name: str) -> None:
    """The product's import reads the files as they are shipped; the class of each value stands in the test."""
    chosen = DATA_SETS[name]
    classes = load_class_list(chosen.classes) if isinstance(chosen.classes, str) else chosen.classes
    named = [(str(dict(entry)["name"]), (index, 0, 0)) for index, entry in enumerate(classes)]
    found = [find_validation(drawn, name, tmp_path)] if chosen.validation else []
    found += [find_train(drawn, name)] if name != "acdc" else []
    for split in found:
        label_map = LabelMap.of(SourceSettings.model_validate(split.settings()), named)
        assert len(split.pairs) == (4 if name == "acdc" else 2)
        for number, pair in enumerate(split.pairs):
            wanted = np.vectorize(VALUES[name].__getitem__)(drawn_label(VALUES[name], number))
            assert read_label(pair.label, label_map, LIMITS).classes.tolist() == wanted.tolist()


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("gta", "labels/{}.png", "labels/{}_labelTrainIds.png"),
        ("synthia", "GT/LABELS/{}.png", "GT/LABELS/{}_labelTrainIds.png"),
        ("cityscapes", "gtFine/train/{}_gtFine_labelIds.png", "gtFine/train/{}_gtFine_labelTrainIds.png"),
    ],
)
def test_labels_that_were_converted_are_found_too(tmp_path: Path, name: str, old: str, new: str) -> None:
    draw_all(tmp_path)
    folder = tmp_path / DATA_SETS[name].folder
    for pair in find_train(tmp_path, name).pairs:
        stem = pair.name.removesuffix(".png").removesuffix("_leftImg8bit")
        assert pair.label == folder / old.format(stem)
        pair.label.rename(folder / new.format(stem))
    found = find_train(tmp_path, name)
    assert found.source["label_suffix"].endswith("_labelTrainIds") and "label_format" not in found.source


def test_target_images_are_those_of_the_training_split(drawn: Path, tmp_path: Path) -> None:
    for key, wanted in (("gta-dacs", 2), ("acdc-daformer", 4), ("refuge-dacs", 2)):
        watch = Job(places(drawn, tmp_path), key, "mfm", 0, SHORT).settings.watch
        names = target_names(watch)
        assert len(names) == wanted and not any("/val/" in name or "_ref" in name or "/test/" in name for name in names)


def test_every_row_is_a_configuration_of_the_product(drawn: Path, tmp_path: Path) -> None:
    for key, row in ROWS.items():
        for arm in row.arms():
            settings = Job(places(drawn, tmp_path), key, arm, 0, Lengths()).settings
            recipe = settings.recipe
            assert settings.mfm.enabled == (arm == "mfm")
            few, vit, high = recipe.name == "mfm_da", "VFM-UDA" in row.method, "HRDA" in row.method
            assert few or vit or recipe.name in row.method.lower().replace("(", "")
            images = settings.round.batch_size * settings.round.advanced.gradient_accumulation
            assert (settings.round.steps, images) == (15_000 if few else 40_000, 8 if few or vit else 2)
            side = 224 if few else 1024 if high or vit else 512
            assert settings.pretrain.steps == 1 and settings.network.multi_resolution == high
            assert settings.round.crop_height == side
            assert settings.buffer.height == (side if row.target != "acdc" else side * 540 // 512)
            margins = recipe.margin_top + recipe.margin_bottom
            assert (margins > 0) == (recipe.name not in ("dacs", "mfm_da") and row.target == "cityscapes")
            for term in ("dida", "blda", "complementary"):
                assert getattr(recipe.advanced, term).enabled == (arm == term)
            assert getattr(recipe, "masked_image_weight", 0.0) == (recipe.name == "mic")


def test_neighbours_have_the_settings_of_their_papers(drawn: Path, tmp_path: Path) -> None:
    """Rates of the ViT: a tenth of 5e-5 x sqrt(8), of 1e-5 x sqrt(8) for VFM-UDA++ Large."""
    for key, encoder, rate in (
        ("gta-vfmuda-large", "dinov2_large", 1.414e-5),
        ("gta-vfmuda++-base", "dinov2_adapter_base", 1.414e-5),
        ("gta-vfmuda++-large", "dinov2_adapter_large", 2.828e-6),
    ):
        settings = Job(places(drawn, tmp_path), key, "plain", 0, Lengths()).settings
        advanced, plus = settings.recipe.advanced, "++" in key
        assert (settings.network.encoder, settings.round.optim.learning_rate) == (encoder, rate)
        assert (settings.round.optim.advanced.layer_decay, settings.network.name) == (
            (0.9, "pyramid") if plus else (1.0, "light")
        )
        assert (advanced.masked_tokens, advanced.foundation.enabled) == (not plus, plus)
        given = tmp_path / "weights/dinov2-with-registers-large"
        assert not plus or advanced.foundation.directory == given
    few = Job(places(drawn, tmp_path), "refuge-mfmda", "plain", 0, Lengths()).settings
    assert few.recipe.advanced.class_bce.nested == (("disc", "cup"),) and few.recipe.least_frames() == 10
    (tmp_path / "ten").mkdir()
    for number in range(1, 31):
        (tmp_path / f"ten/V{number:04d}.jpg").touch()
    names = target_names(few.watch.model_copy(update={"folder": tmp_path / "ten"}))
    assert sorted(names) == [f"V{number:04d}.jpg" for number in range(1, 11)]


def test_weights_have_the_names_of_the_hub(drawn: Path, tmp_path: Path) -> None:
    def name_of(key: str, lengths: Lengths) -> str:
        return Job(places(drawn, tmp_path), key, "mfm", 0, lengths).weights.name

    assert [name_of(key, Lengths()) for key in ("gta-dacs", "gta-dacs-r50", "gta-hrda", "gta-mic-b3")] == [
        "resnet-101", "resnet-50", "mit-b5", "mit-b3",
    ]  # fmt: skip
    vits = ("gta-vfmuda-base", "gta-vfmuda++-large", "refuge-mfmda")
    assert [name_of(key, Lengths()) for key in vits] == ["dinov2-base", "dinov2-large", "dinov2-large"]
    assert [name_of(key, SHORT) for key in ("gta-dacs", "gta-hrda", *vits)] == [
        "resnet-tiny", "mit-tiny", *["dinov2-tiny"] * 3,
    ]  # fmt: skip


@pytest.mark.parametrize(("source", "classes", "wanted"), [("gta", "19", 2.25), ("synthia", "16", 2.825)])
def test_mean_gains_of_mfm_are_those_of_the_abstract(source: str, classes: str, wanted: float) -> None:
    """The abstract says +2.3 and +2.8 over four baselines."""
    rows = [ROWS[f"{source}-{name}"] for name in ("dacs", "daformer", "hrda", "mic")]
    gains = [(row.figure("mfm", classes).miou or 0.0) - (row.figure("plain", classes).miou or 0.0) for row in rows]
    assert np.mean(gains) == pytest.approx(wanted)


def test_a_mean_leaves_out_the_classes_that_the_source_lacks() -> None:
    names = [str(entry["name"]) for entry in load_class_list("cityscapes")]
    assert [19 - len(SUBSETS[name]) for name in ("19", "16", "13")] == [19, 16, 13]
    assert set(SUBSETS["13"]) <= set(names)
    iou = dict.fromkeys(names, 0.5) | {"terrain": 0.0, "truck": 0.0, "train": 0.0, "wall": 0.1, "bus": None}
    assert mean_over(iou, SUBSETS["16"]) == pytest.approx((14 * 0.5 + 0.1) / 15)
    assert mean_over(iou, SUBSETS["13"]) == pytest.approx(0.5)


def test_another_default_in_the_code_is_another_run(
    drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def made() -> tuple[str, Path]:
        job = Job(places(drawn, tmp_path), "gta-dacs", "mfm", 0, Lengths())
        return job.digest(), job.settings.state

    def with_default(section: str, kind: type[Section], **defaults: object) -> tuple[str, Path]:
        """What a job has in an mfmd with other defaults in one section."""
        fields: dict[str, Any] = {name: (kind.model_fields[name].annotation, value) for name, value in defaults.items()}
        later = create_model("Later", __base__=kind, **fields)
        changed: dict[str, Any] = {section: (later, later())}
        monkeypatch.setattr(paper_plan, "Settings", create_model("LaterSettings", __base__=Settings, **changed))
        return made()

    key, start = made()
    assert with_default("log", LogSettings, level="debug") == (key, start)
    other, same_start = with_default("round", RoundSettings, mixed_precision="bf16")
    assert other != key and same_start == start
    other, other_start = with_default("network", NetworkSettings, channels=8)
    assert other != key and other_start != start


def test_the_table_compares_ours_with_the_published_figure(drawn: Path, tmp_path: Path) -> None:
    jobs = plan(places(drawn, tmp_path), ["synthia-dacs"], ["plain", "mfm"], [0, 1], Lengths())
    results = [
        {"key": job.digest(), "student": {"16": 0.5 + job.seed / 50, "13": 0.6}, "served": {"16": 0.4, "13": 0.6}}
        for job in jobs
        if job.arm == "mfm"
    ]
    lines = report(jobs, results).splitlines()
    assert [line.split(" | ")[4:10] for line in lines if line.startswith("| synthia-dacs")] == [
        ["16", "55.8", "51.0 ± 1.4", "-4.8", "40.0", "2"],
        ["13", "not found", "60.0 ± 0.0", "-", "60.0", "2"],
    ]
    assert lines[0].startswith("| row") and lines[-1].startswith("- synthia-dacs: 48.3 is DACS's own code")
    shortened = plan(places(drawn, tmp_path), ["synthia-dacs"], ["mfm"], [0], Lengths(steps=500))
    assert report(shortened, []).startswith("**Not a published run: 500 steps.**")


def test_a_row_runs_through_the_product(
    drawn: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [str(drawn), str(weights), "--work", str(tmp_path), "--rows", "gta-dacs", "--arms", "mfm"]
    command += ["--steps", "2", "--tiny"]
    assert main([*command, "--dry-run"]) == 0
    told = capsys.readouterr().out
    assert "gta-dacs mfm 0: GTA -> Cityscapes, DACS + MFM" in told and "Cityscapes: 2 target images, 2 scored" in told
    assert not (tmp_path / "starts").exists()
    assert main(command) == 0
    table = capsys.readouterr().out
    [line] = map(json.loads, (tmp_path / "results.jsonl").read_text().splitlines())
    assert (line["row"], line["arm"], line["seed"], line["steps"], line["images"]) == ("gta-dacs", "mfm", 0, 2, 2)
    assert 0.0 <= line["student"]["19"] <= 1.0 and len(line["student_iou"]) == 19
    assert "| DACS + MFM | DeepLabV2, ResNet-101 | 19 | 55.9 |" in table
    state = next((tmp_path / "starts").iterdir())
    with FrameBuffer.open(
        StateLayout(state), Job(places(drawn, tmp_path), "gta-dacs", "mfm", 0, SHORT).settings.buffer, writable=False
    ) as buffer:
        assert [record.holdout for record in buffer.records()] == [False, False]
    assert main(command) == 0, "a finished run is not repeated"
    assert capsys.readouterr().out == table and len((tmp_path / "results.jsonl").read_text().splitlines()) == 1
    (tmp_path / "results.jsonl").unlink()
    assert main(command) == 0, "a round that was not scored yet is scored"
    again = json.loads((tmp_path / "results.jsonl").read_text())
    assert again["student_iou"] == line["student_iou"] and RoundStore(StateLayout(state).rounds).numbers() == [1]


NIGHTLY = [(key, "mfm" if "mfm" in row.arms() else "plain") for key, row in ROWS.items() if key != "gta-dacs"]
NIGHTLY += [("gta-daformer", arm) for arm in ("plain", "dida", "blda")]
NIGHTLY += [("synthia-hrda", "complementary"), ("gta-vfmuda++-base", "plain"), ("refuge-mfmda", "plain")]


@pytest.mark.nightly
@pytest.mark.parametrize(("key", "arm"), NIGHTLY)
def test_every_row_runs(drawn: Path, all_weights: Path, tmp_path: Path, key: str, arm: str) -> None:
    command = [str(drawn), str(all_weights), "--work", str(tmp_path), "--rows", key, "--arms", arm]
    assert main([*command, "--steps", "2", "--tiny"]) == 0
    [line] = map(json.loads, (tmp_path / "results.jsonl").read_text().splitlines())
    assert list(line["student"]) == ROWS[key].classes() and line["images"] == (4 if key.startswith("acdc") else 2)


@pytest.mark.nightly
def test_a_run_repeats_whatever_ran_before_it(drawn: Path, weights: Path, tmp_path: Path) -> None:
    command = [str(drawn), str(weights), "--work", str(tmp_path), "--rows", "gta-dacs", "--steps", "2", "--tiny"]
    assert main([*command, "--seeds", "1"]) == 0
    assert len(list((tmp_path / "starts").iterdir())) == 1, "arms share a start"
    first, other = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert (first["arm"], other["arm"]) == ("plain", "mfm") and first["student_iou"] != other["student_iou"]
    (tmp_path / "results.jsonl").write_text("")
    assert main([*command, "--arms", "plain", "--seeds", "1"]) == 0
    again = json.loads((tmp_path / "results.jsonl").read_text())
    assert again["student_iou"] == first["student_iou"]


def refused(given: Sequence[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], row: str = "gta-dacs") -> str:
    """Run the command line, which must refuse before anything starts; return what it says."""
    assert main([*given, "--work", str(tmp_path / "work"), "--rows", row, "--steps", "2", "--tiny"]) == 2
    assert not (tmp_path / "work" / "starts").exists()
    return capsys.readouterr().err


def test_all_that_is_missing_is_named_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, weights = tmp_path / "data", tmp_path / "weights"
    draw_gta(data)
    told = refused([str(data), str(weights), "--dry-run"], tmp_path, capsys)
    for folder in ("leftImg8bit/val", "gtFine/val", "leftImg8bit/train"):
        assert f"{data}/cityscapes/{folder}: no such folder of Cityscapes" in told
    assert f"{weights}/resnet-tiny: no such directory of weights; save the ImageNet weights of resnet_tiny" in told
    assert str(data / "gta") not in told


def test_wrong_files_are_named_before_anything_starts(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    draw_all(data)
    given = [str(data), str(weights)]
    label = data / "gta/labels/00002.png"
    kept = label.read_bytes()
    label.unlink()
    assert f"{data}/gta/images/00002.png: no label 00002.png below {data}/gta/labels" in refused(
        given, tmp_path, capsys
    )
    Image.fromarray(np.full((36, 64), 35, np.uint8)).save(label)
    assert f"{label}: label value 35 at row 0, column 0 is no class" in refused(given, tmp_path, capsys)
    Image.fromarray(np.full((36, 60), 7, np.uint8)).save(label)
    assert f"{label}: (60, 36) pixels, its image {data}/gta/images/00002.png has (64, 36)" in refused(
        given, tmp_path, capsys
    )
    label.write_bytes(kept)
    broken = tmp_path / "broken"
    shutil.copytree(weights, broken)
    (broken / "resnet-tiny" / "model.safetensors").write_bytes(b"")
    told = refused([str(data), str(broken)], tmp_path, capsys)
    assert f"{broken}/resnet-tiny/model.safetensors: empty (0 bytes)" in told
    shutil.rmtree(broken / "resnet-tiny")
    shutil.copytree(weights / "mit-tiny", broken / "resnet-tiny")
    assert f"{broken}/resnet-tiny" in refused([str(data), str(broken)], tmp_path, capsys)
    told = refused([str(data), str(broken), "--dry-run"], tmp_path, capsys, row="gta-vfmuda++-base")
    assert f"{broken}/dinov2-tiny/config.json: cannot be read" in told, "the model that features are compared with"


def test_a_target_image_that_is_not_taken_ends_the_run(weights: Path, tmp_path: Path) -> None:
    draw_all(tmp_path)
    image = next((tmp_path / "cityscapes/leftImg8bit/train").rglob("*.png"))
    image.write_bytes(image.read_bytes()[:200])
    settings = Job(places(tmp_path, tmp_path), "gta-dacs", "mfm", 0, SHORT).settings
    layout = StateLayout(settings.state)
    layout.create()
    with (
        FrameBuffer.open(layout, settings.buffer, writable=True) as buffer,
        pytest.raises(PaperFailed, match=r"images were not taken: \{'truncated': 1\}"),
    ):
        ingest_target(settings, buffer)
