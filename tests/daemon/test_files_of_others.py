"""No command writes over a file that it did not make: every writer outside the state directory meets such files.

Each writer runs once into an empty folder, which shows the names that it writes. Then something of the user stands at
each of these names in turn: a file, a folder with a file, a link to a file, a link that leads nowhere, a hard link.
"""

import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from adapters.checkpoints.checkpoint import make_manifest, save_weights
from adapters.checkpoints.exporting.export import export_version
from adapters.errors import AdapterError
from adapters.networks.build import build_network
from adapters.scoring.prediction import predict_files
from configs.settings import Settings
from configs.watch import VideoSettings, WatchSettings
from daemon.cli import main
from daemon.demo.report import DemoReport, Step
from daemon.demo.scoring import Pair, ServedScore
from daemon.videos.frame_files import write_frames
from storage import durable
from storage.buffer.export import export_frames
from storage.buffer.frames import FrameBuffer
from storage.errors import StorageError
from storage.layout import StateLayout
from storage.registry.mirrors import HuggingFaceMirror, Mirror, TritonMirror
from storage.registry.registry import CheckpointRegistry
from tests.storage.registry.mirrored import export
from tests.video_files import make_video

Writer = Callable[[Path], None]
"""Writes into a folder."""
OBSTACLES = ("file", "folder", "link", "dangling link", "hard link")


@pytest.fixture(scope="module")
def writers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Writer]:
    """Every place outside the state directory that mfmd writes to, but for masks (tests/daemon/masks)."""
    root = tmp_path_factory.mktemp("mfmd")
    (root / "in").mkdir()
    for name in ("a.png", "a.jpg", "a_color.bmp"):
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(root / "in" / name)
    settings = Settings.model_validate({
        "state": root / "state", "classes": "demo", "watch": {"folder": root / "drop"},
        "buffer": {"height": 32, "width": 32, "advanced": {"tile": 16}},
        "network": {"name": "daformer", "encoder": "mit_tiny", "channels": 8},
    })  # fmt: skip
    torch.manual_seed(0)
    registry, layout = CheckpointRegistry(settings.state / "checkpoints"), StateLayout(settings.state)
    save_weights(build_network(settings.network.architecture(), 8), root / "weights.safetensors")
    registry.add(root / "weights.safetensors", make_manifest(settings, origin="pretrain"), by="test")
    registry.promote(1, by="test", reason="first")
    FrameBuffer.open(layout, settings.buffer, writable=True).close()
    images = [root / "in" / name for name in ("a.png", "a.jpg", "a_color.bmp")]

    def frames(folder: Path) -> None:
        with FrameBuffer.open(layout, settings.buffer, writable=False) as buffer:
            export_frames(buffer, folder / "frames", "png")

    def demo(folder: Path) -> None:
        mask = np.zeros((4, 6), np.uint8)
        score = ServedScore(1, np.full(8, 0.5), (mask,))
        label = root / "label.png"
        Image.fromarray(mask).save(label)
        DemoReport([Step(None, score, 1.0)], settings.classes).write(folder, [Pair(label, label)])

    def video(folder: Path) -> None:
        (root / "v.mp4").write_bytes(make_video(12))
        write_frames(root / "v.mp4", folder, VideoSettings(), WatchSettings(folder=root / "drop"))

    def moved(folder: Path) -> None:
        (root / "stored.png").write_bytes(b"stored")
        durable.move_file(root / "stored.png", folder / "cam" / "stored.png")

    def mirrored(make: Callable[[Path], Mirror]) -> Writer:
        def publish(folder: Path) -> None:
            mirror = make(folder)
            for version in (1, 2, 1):
                if mirror.current() != version:
                    export(mirror, version)
                    mirror.point(version)
            mirror.prune({1})

        return publish

    return {
        "predict": lambda folder: [*predict_files(settings, images, folder)].clear(),
        "export": lambda folder: export_version(registry, 1, "huggingface", folder / "model").clear(),
        "buffer export": frames,
        "init": lambda folder: _run("init", str(folder / "drop"), "--config", str(folder / "etc" / "mfmd.yaml")),
        "demo": demo,
        "frames": video,
        "after_commit, quarantine": moved,
        "publish.triton": mirrored(lambda folder: TritonMirror(folder, 4)),
        "publish.huggingface": mirrored(HuggingFaceMirror),
    }


def _run(*arguments: str) -> None:
    main([*arguments])


NAMES = (
    "predict", "export", "buffer export", "init", "demo", "frames", "after_commit, quarantine", "publish.triton",
    "publish.huggingface",
)  # fmt: skip


@pytest.mark.parametrize("obstacle", OBSTACLES)
@pytest.mark.parametrize("name", NAMES)
def test_nothing_of_the_user_is_written_over(
    writers: dict[str, Writer], tmp_path: Path, name: str, obstacle: str
) -> None:
    if name == "export":  # a network costs seconds, and this one has no such format
        written = [Path("model"), Path("model/config.json")]
    else:
        writers[name](tmp_path / "empty")
        written = [path.relative_to(tmp_path / "empty") for path in sorted((tmp_path / "empty").rglob("*"))]
    assert written
    for place in written[:6]:
        folder, mine = tmp_path / "used", tmp_path / "mine.png"
        mine.write_bytes(b"mine")
        (folder / place).parent.mkdir(parents=True)
        _stand(obstacle, folder / place, mine)
        before = [*_state(folder / place), *_state(mine)]
        with suppress(StorageError, AdapterError, OSError):
            writers[name](folder)
        after = [*_state(folder / place), *_state(mine)]
        assert [item for item in before if item not in after] == [], place
        shutil.rmtree(folder)


def _stand(obstacle: str, place: Path, mine: Path) -> None:
    if obstacle == "file":
        place.write_bytes(b"mine too")
    elif obstacle == "folder":
        place.mkdir()
        (place / "mine.txt").write_bytes(b"mine too")
    elif obstacle == "hard link":
        place.hardlink_to(mine)
    else:
        place.symlink_to(mine if obstacle == "link" else "nowhere")


def _state(path: Path) -> Iterator[tuple[str, object]]:
    """Yield what must stay: links with their targets, files with their content."""
    if path.is_symlink():
        yield str(path), path.readlink()
    elif path.is_dir():
        for inner in sorted(path.rglob("*")):
            yield from _state(inner)
    elif path.exists():
        yield str(path), path.read_bytes()


def test_what_mfmd_made_is_made_anew(writers: dict[str, Writer], tmp_path: Path) -> None:
    for name in ("predict", "demo", "publish.triton", "publish.huggingface", "frames"):
        folder = tmp_path / name
        writers[name](folder)
        before = sorted(folder.rglob("*"))
        writers[name](folder)
        assert sorted(folder.rglob("*")) == before, name
