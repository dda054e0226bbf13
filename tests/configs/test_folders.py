"""Folders that overlap are refused by the names of both settings when files would be lost or misread, else accepted."""

import itertools
from pathlib import Path
from typing import Any

import pytest
import yaml

from configs.errors import ConfigError
from configs.folders import reader_of
from configs.load import load_settings

APART = {
    "state": "state",
    "watch.folder": "drop",
    "watch.done_folder": "done",
    "watch.quarantine": "bad",
    "source.images": "images",
    "source.labels": "labels",
    "source.validation_images": "val/images",
    "source.validation_labels": "val/labels",
    "canary.images": "canary/images",
    "canary.labels": "canary/labels",
    "masks.folder": "masks",
    "publish.triton": "triton",
    "publish.huggingface": "hf",
}
HARMLESS = {
    ("canary.images", "canary.labels"), ("canary.images", "source.labels"),
    ("canary.images", "source.validation_labels"), ("canary.labels", "source.images"),
    ("canary.labels", "source.labels"), ("canary.labels", "source.validation_images"),
    ("canary.labels", "source.validation_labels"), ("source.images", "source.labels"),
    ("source.images", "source.validation_labels"),
    ("source.labels", "source.validation_images"), ("source.labels", "source.validation_labels"),
    ("source.validation_images", "source.validation_labels"),
}  # fmt: skip
"""Pairs of labelled folders that are only read: labels beside their images, one folder of labels for both sets."""


def _config(folder: Path, paths: dict[str, str], **more: Any) -> Path:
    values: dict[str, Any] = {"classes": "demo", "watch": {"after_commit": "move"}}
    for name, path in paths.items():
        *section, key = name.split(".")
        place = values.setdefault(section[0], {}) if section else values
        place[key] = path
    for name, section_values in more.items():
        values[name] = {**values.get(name, {}), **section_values}
    file = folder / "mfmd.yaml"
    file.write_text(yaml.safe_dump(values))
    return file


def _refusal(file: Path) -> str:
    try:
        load_settings(file)
    except ConfigError as error:
        assert str(error).startswith(f"{file}: ") and "\n" not in str(error)
        return str(error)
    return ""


def test_the_usual_layout_is_accepted(tmp_path: Path) -> None:
    assert not _refusal(_config(tmp_path, APART))


@pytest.mark.parametrize("how", ["{}", "{}/a/b", "{}/a/../c", "link", "link/a"])
def test_every_pair_that_overlaps_is_refused_by_name(tmp_path: Path, how: str) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    for outer, inner in itertools.permutations(APART, 2):
        paths = {**APART, outer: "real", inner: how.format("real")}
        refusal = _refusal(_config(tmp_path, paths))
        if tuple(sorted((outer, inner))) in HARMLESS:
            assert not refusal, (outer, inner)
        else:
            assert f"{inner}: " in refusal or f"{outer}: " in refusal, (outer, inner, refusal)
            assert inner in refusal and outer in refusal, (outer, inner, refusal)


@pytest.mark.parametrize("name", sorted(APART.keys() - {"watch.folder"}))
def test_a_folder_that_the_search_never_enters_may_lie_in_the_drop_folder(tmp_path: Path, name: str) -> None:
    for place in ("drop/.hidden", "drop/cam/.hidden/x", "drop/@eaDir", "drop/X.TMP/y"):
        assert not _refusal(_config(tmp_path, {**APART, name: place}))
    shallow = {"advanced": {"recursive": False}}
    assert not _refusal(_config(tmp_path, {**APART, name: "drop/sub"}, watch=shallow))
    assert _refusal(_config(tmp_path, {**APART, name: "drop"}, watch=shallow))
    assert _refusal(_config(tmp_path, {**APART, name: "drop/.x"}, watch={"ignore": ["*.part"]}))


@pytest.mark.parametrize("name", sorted(APART))
def test_a_folder_that_is_a_file_is_refused_by_name(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    for path in ("file", "file/below"):
        assert f"{name}: {tmp_path}/file is a file" in _refusal(_config(tmp_path, {**APART, name: path}))


def test_a_quarantine_does_not_take_the_files_of_the_configuration(tmp_path: Path) -> None:
    """It takes every file of the drop folder that is no image."""
    paths = {"watch.folder": ".", "state": "../state", "watch.quarantine": "../bad"}
    folder = tmp_path / "drop"
    folder.mkdir()
    file = _config(folder, paths, watch={"after_commit": "keep"})
    assert f"this configuration file: {file} lies in watch.folder" in _refusal(file)
    assert not _refusal(
        _config(folder, {key: paths[key] for key in ("watch.folder", "state")}, watch={"after_commit": "keep"})
    )
    paths = {**APART, "control.token_file": "drop/token"}
    assert "control.token_file" in _refusal(_config(tmp_path, paths))


def test_a_command_does_not_write_where_images_are_read(tmp_path: Path) -> None:
    settings = load_settings(_config(tmp_path, APART))
    for place in ("drop", "drop/x", "images", "val/labels/x", "state/x"):
        assert reader_of(settings, tmp_path / place).endswith(str(tmp_path / place).removesuffix("/x"))
    for place in ("out", "drop/.hidden", "val", "."):
        assert not reader_of(settings, tmp_path / place)
    assert not reader_of(settings, tmp_path / "drop", drop=False) and reader_of(
        settings, tmp_path / "images", drop=False
    )
