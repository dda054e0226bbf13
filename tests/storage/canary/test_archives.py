"""Zip archives of labels: what floods the disk, leaves its folder or cannot be read is refused, and nothing is left."""

import zipfile

import numpy as np
import pytest

from storage.errors import CanaryRefused
from tests.storage.canary.conftest import World


def link(name: str) -> zipfile.ZipInfo:
    made = zipfile.ZipInfo(name)
    made.external_attr = 0o120777 << 16
    return made


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        (["../masks/frame_000001.png"], r"'\.\./masks/frame_000001\.png' is no plain file"),
        (["masks/../../masks/frame_000001.png"], "is no plain file"),
        (["/masks/frame_000001.png"], "'/masks/frame_000001.png' is no plain file"),
        (["masks\\frame_000001.png"], "is no plain file"),
        ([link("masks/frame_000001.png")], "'masks/frame_000001.png' is no plain file"),
        (["masks/frame_000001.png"] * 2, "'masks/frame_000001.png' stands there twice"),
        (["masks/frame_000001.png", "masks//frame_000001.png"], "stands there twice"),
        (["masks", "masks/frame_000001.png"], "no zip archive that can be read"),
    ],
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_an_archive_holds_plain_files_once(
    world: World, members: list[str | zipfile.ZipInfo], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, temporary = world.folder, world.folder.parent / "temporary"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    content = (files / "masks" / "frame_000001.png").read_bytes()
    export = world.folder.parent / "sent.zip"
    with zipfile.ZipFile(export, "w") as archive:
        for member in members:
            archive.writestr(member, content)
    with pytest.raises(CanaryRefused, match=reason):
        world.add(export, images=files / "images")
    assert not (world.layout.canary / "files").exists() and not list(temporary.iterdir())


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_damaged_archive_is_refused(world: World, method: int) -> None:
    export, rng = world.folder.parent / "sent.zip", np.random.default_rng(0)
    with zipfile.ZipFile(export, "w", method) as archive:
        archive.writestr("masks/frame_000001.png", rng.bytes(500) + bytes(5000))
    whole = export.read_bytes()
    export.write_bytes(whole[:58] + bytes(100) + whole[158:])
    with pytest.raises(CanaryRefused, match="no zip archive that can be read"):
        world.add(export, images=world.folder / "images")


@pytest.mark.parametrize(
    ("limit", "value", "reason"),
    [("MOST_BYTES", 2**20, "unpacks to more than"), ("MOST_MEMBERS", 1, "holds more than 1 files")],
)
def test_an_archive_is_bounded(
    world: World, limit: str, value: int, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"storage.canary.archives.{limit}", value)
    export = world.folder.parent / "sent.zip"
    with zipfile.ZipFile(export, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("frame_000001", "frame_000002"):
            archive.writestr(f"masks/{name}.png", bytes(2**19 + 1))
    with pytest.raises(CanaryRefused, match=reason):
        world.add(export)
