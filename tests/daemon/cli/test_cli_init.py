"""`mfmd init` writes a file that works, explains itself and never overwrites by accident."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from configs.class_list import shipped
from configs.load import load_settings
from configs.settings import Settings
from daemon.cli.settings.page import sections


def test_written_configuration_validates_and_changes_no_default(mfmd, config: Path) -> None:
    config.unlink()
    answer = mfmd("init", "incoming", "--classes", "camvid")
    assert answer.code == 0 and "mfmd doctor" in answer.out
    written = load_settings(config)
    minimal = {"classes": "camvid", "watch": {"folder": "incoming"}}
    assert written == Settings.model_validate(minimal, context={"base": config.parent})
    assert (config.parent / "incoming").is_dir()
    assert mfmd("config", "validate").code == 0


def test_existing_file_is_kept_unless_forced(mfmd, config: Path) -> None:
    before = config.read_bytes()
    answer = mfmd("init", "incoming")
    assert answer.code == 2 and "--force" in answer.err and config.name in answer.err
    assert config.read_bytes() == before
    assert mfmd("init", "incoming", "--force").code == 0
    assert load_settings(config).watch.folder == config.parent / "incoming"


def test_source_folders_are_written_live(mfmd, config: Path) -> None:
    answer = mfmd("init", "--force", "--source-images", "day/images", "--source-labels", "day/labels")
    source = load_settings(config).source
    assert source is not None and source.images == config.parent / "day/images"
    assert "mfmd pretrain" in answer.out
    assert mfmd("init", "--force", "--source-images", "day/images").code == 2


def test_labels_are_looked_at(mfmd, config: Path) -> None:
    for name in ("day", "truth"):
        (config.parent / name).mkdir()
    options = ("init", "--force", "--classes", "demo", "--source-images", "day", "--source-labels", "truth")
    assert "holds no image" in mfmd(*options).err
    Image.new("RGB", (8, 8)).save(config.parent / "day" / "a.jpg")
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8) // 8).save(config.parent / "truth" / "a.png")
    answer = mfmd(*options)
    assert answer.code == 0 and "1 labelled images" in answer.out and "  12.50 %  sky" in answer.out
    Image.fromarray(np.full((8, 8), 8, np.uint8)).save(config.parent / "truth" / "a.png")
    refused = mfmd(*options)
    assert refused.code == 1 and "label value 8" in refused.err and "Next" not in refused.out
    assert load_settings(config).source is not None, "the file is written: there the mapping is set"


def test_paths_are_relative_to_the_written_file(mfmd, tmp_path: Path) -> None:
    other = tmp_path / "etc" / "mfmd.yaml"
    answer = mfmd("init", tmp_path / "away" / "drop", "--config", other)
    assert answer.code == 0 and f"--config {other}" in answer.out
    assert load_settings(other).watch.folder == tmp_path / "away" / "drop"


def test_folder_names_survive_yaml(mfmd, config: Path) -> None:
    for name in ("with space", "no", "#hash", "colon: x", "übung", "12"):
        assert mfmd("init", name, "--force").code == 0
        assert load_settings(config).watch.folder == config.parent / name


@pytest.mark.parametrize("name", shipped("presets"))
def test_preset_takes_the_drop_folder(mfmd, config: Path, name: str) -> None:
    assert mfmd("init", "my: drop", "--preset", name, "--force").code == 0
    written = load_settings(config)
    preset = load_settings(Path(__file__).parents[3] / "configs" / "presets" / f"{name}.yaml")
    assert written.watch.folder == config.parent / "my: drop"
    assert written.round == preset.round and written.mfm == preset.mfm
    assert "# " in config.read_text(encoding="utf-8"), "its comments are kept"


def test_unknown_names_are_answered_with_the_known_ones(mfmd) -> None:
    for option in ("--preset", "--classes"):
        answer = mfmd("init", option, "nothing", "--force")
        assert answer.code == 2 and "nothing" in answer.err and "camvid" in answer.err


@pytest.mark.parametrize("options", [("--source-images", "a", "--source-labels", "b"), ("--classes", "cityscapes")])
def test_a_preset_refuses_the_options_that_it_would_ignore(mfmd, config: Path, options: tuple[str, ...]) -> None:
    before = config.read_text(encoding="utf-8")
    run = mfmd("init", "drop", "--preset", "demo", *options, "--force")
    assert run.code == 2 and options[0] in run.err
    assert config.read_text(encoding="utf-8") == before


def test_help_names_every_preset(mfmd) -> None:
    shown = re.sub(r"[\s│]+", "", mfmd("init", "--help").out)
    assert all(name in shown for name in shipped("presets"))


def test_it_fits_on_one_screen_and_says_why_for_each_line(mfmd, config: Path) -> None:
    for chosen in ((), ("--source-images", "day", "--source-labels", "labels")):
        assert mfmd("init", "--force", *chosen).code == 0
        lines = config.read_text(encoding="utf-8").splitlines()
        assert len(lines) <= 40
        assert all(len(line) <= 120 for line in lines)
        settings = [line for line in lines if re.match(r"#? *[a-z_]+: \S", line)]
        assert len(settings) == 20 and all(" # " in line for line in settings)
        names = {setting.path[-1] for section in sections() for setting in section.settings if setting.visible}
        assert {line.strip(" #").partition(":")[0] for line in settings} <= names


def test_the_commented_source_section_works_too(tmp_path: Path) -> None:
    text = (Path(__file__).parents[3] / "configs" / "init.yaml").read_text(encoding="utf-8")
    path = tmp_path / "mfmd.yaml"
    path.write_text(re.sub(r"^#(source:|  (?:images|labels):)", r"\1", text, flags=re.MULTILINE), encoding="utf-8")
    source = load_settings(path).source
    assert source is not None and source.images == tmp_path / "source/images"


def test_classes_may_be_names(mfmd, config: Path) -> None:
    names = ["background", "no", "1e3", "it's: #x", "übung"]
    answer = mfmd("init", "--force", "--classes", ",".join(names))
    assert answer.code == 0 and f"Classes (5): {', '.join(names)}." in answer.out
    assert [item.name for item in load_settings(config).classes] == names
    for wrong, says in (("a,a", "unique; twice: a"), ("a,,b", "at least 1 character"), ("vessel", "or give names")):
        before = config.read_bytes()
        answer = mfmd("init", "--force", "--classes", wrong)
        assert answer.code == 2 and says in answer.err and config.read_bytes() == before


def test_it_says_which_classes_nobody_chose(mfmd) -> None:
    answer = mfmd("init", "--force")
    assert "Classes (19): road, sidewalk" in answer.out
    others = ", ".join(name for name in shipped("class_lists") if name != "cityscapes")
    assert f"They are of cityscapes; --classes chooses others: {others}, or names" in answer.out
    assert "chooses others" not in mfmd("init", "--force", "--classes", "cityscapes").out
    assert "Classes (8): sky" in mfmd("init", "--force", "--preset", "demo").out


def test_nothing_is_written_that_is_not_valid(mfmd, config: Path) -> None:
    config.unlink()
    answer = mfmd("init", ".")
    assert answer.code == 2 and "state: " in answer.err and "lies in watch.folder" in answer.err
    answer = mfmd("init", "day", "--source-images", "day", "--source-labels", "truth")
    assert answer.code == 2 and "source.images" in answer.err and "watch.folder" in answer.err
    assert not config.exists() and not (config.parent / "day").exists()
    (config.parent / "mfmd.yaml").symlink_to("elsewhere")
    assert mfmd("init").code == 2 and not (config.parent / "elsewhere").exists()
    answer = mfmd("init", "--config", ".", "--force")
    assert answer.code == 2 and "is a folder" in answer.err


def test_a_tilde_is_the_home_directory(mfmd, config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = config.parent / "home"
    monkeypatch.setenv("HOME", str(home))
    assert mfmd("init", "~/drop", "--config", "~/mfmd.yaml").code == 0
    assert load_settings(home / "mfmd.yaml").watch.folder == home / "drop" and (home / "drop").is_dir()
    assert not (config.parent / "~").exists()
    assert mfmd("config", "validate", "~/mfmd.yaml").code == 0
    answer = mfmd("init", "~nobody-has-this-name/drop", "--force")
    assert answer.code == 2 and "no home directory" in answer.err
