"""The small world of the fault tests: settings, files that arrive, the jobs that processes do until they are killed.

Every job may be begun again on what a killed one left. What it was told is durable it writes down in `acknowledged`,
which is outside the state directory.
"""

import io
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from configs.buffer import BufferSettings
from configs.class_list import load_class_list
from configs.load import merge
from configs.settings import Settings
from daemon.ingest.worker import Ingest
from daemon.metrics import Metrics
from daemon.videos.worker import VideoWorker
from daemon.watch.events import Hints
from daemon.watch.missing import missing_files
from storage.buffer.catalog_records import FileFact
from storage.buffer.compact import compact_buffer
from storage.buffer.frames import FrameBuffer, NewFrame
from storage.buffer.resize import resize_buffer
from storage.buffer.video_records import read_video_records
from storage.durable.digest import digest_of
from storage.layout import StateLayout
from storage.media import VIDEO_SUFFIXES
from storage.media.images import FittedFrame, decode_image, fit_frame
from storage.registry.manifest import Manifest
from storage.registry.mirrors import HuggingFaceMirror, Mirror, TritonMirror
from storage.registry.registry import CheckpointRegistry
from storage.rounds.folder import RoundStore
from storage.rounds.records import RoundScores, RoundSpec
from storage.rounds.verdict import RoundStart, Verdict
from storage.source.labelled_import import import_labelled
from tests.storage.registry.mirrored import export, weights_of

HEIGHT, WIDTH = 32, 48
PATIENCE = 60.0
"""Deadline of waits (seconds): far more than an idle machine needs."""
CAPACITY = 8
GOOD = 12
"""Good files that `drop_files` makes at first; more than the buffer holds, so that frames leave it."""


CLASSES = load_class_list("demo")
"""Read once: settings are made hundreds of times."""
VIDEO_SECONDS, VIDEOS = 0.1, 4
"""Spacing of the frames that are taken of a video (seconds); videos that `take_videos` waits for."""
NUMBERS = 20
"""Numbers of the images that `lease_frames` uses."""


def settings(root: Path, **sections: dict[str, Any]) -> Settings:
    """Settings of the state directory `root`/state that watches `root`/drop."""
    values: dict[str, Any] = {
        "state": root / "state",
        "classes": CLASSES,
        "watch": {
            "folder": root / "drop", "stability_seconds": 0.0, "max_file_bytes": 300_000, "max_pixels": 100_000,
            "advanced": {"rescan_seconds": 0.05, "group_seconds": 0.02, "group_frames": 3},
        },
        "buffer": {
            "height": HEIGHT, "width": WIDTH, "capacity_frames": CAPACITY, "holdout_fraction": 0.3,
            "reserve_bytes": 0, "advanced": {"tile": 16},
        },
        "network": {"name": "deeplabv3plus", "encoder": "resnet_tiny", "channels": 16},
        "source": {"images": root / "images", "labels": root / "labels"},
    }  # fmt: skip
    for name, section in sections.items():
        values[name] = merge(values.get(name, {}), section)
    return Settings.model_validate(values)


@cache
def image(number: int, height: int = 24, width: int = 40) -> bytes:
    """A PNG whose pixels follow from its number."""
    pixels, file = np.random.default_rng(number).integers(0, 256, (height, width, 3), np.uint8), io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def drop_files(root: Path, first: int = 0, good: int = GOOD) -> dict[str, bytes]:
    """Put good files, a second copy of one and two bad ones into the drop folder; all of them by name."""
    files = {f"cam/{number:04d}.png": image(number) for number in range(first, first + good)}
    files |= {
        f"copy_{first}.png": image(first),
        f"cut_{first}.png": image(first)[:200],
        f"none_{first}.png": b"no image %d" % first,
    }
    for name, content in files.items():
        path = root / "drop" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        os.utime(path, ns=(10**18 + len(content), 10**18 + len(content)))
    return files


def acknowledge(root: Path, *facts: str) -> None:
    """Write down what is durable, as somebody outside knows it."""
    handle = os.open(root / "acknowledged", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.write(handle, "".join(f"{fact}\n" for fact in facts).encode())
    os.close(handle)


def acknowledged(root: Path, kind: str, *, whole: bool = False) -> list[str]:
    """What was written down of a kind, in order; `whole` lines of every kind that begins so, if wanted."""
    path = root / "acknowledged"
    lines = path.read_text().splitlines() if path.exists() else []
    if whole:
        return [line for line in lines if line.startswith(kind)]
    return [line.removeprefix(f"{kind} ") for line in lines if line.startswith(f"{kind} ")]


class AcknowledgedBuffer(FrameBuffer):
    """The real buffer; what it says it committed is written down."""

    root: Path

    def append(self, frames: Any, **how: Any) -> Any:
        records = super().append(frames, **how)
        acknowledge(self.root, *(f"frame {record.digest}" for record in records))
        return records


@contextmanager
def running_ingest(root: Path, config: Settings) -> Iterator[tuple[Ingest, FrameBuffer]]:
    """Real ingest on a real buffer, stepped by the caller."""
    layout = StateLayout(config.state)
    layout.create()
    with AcknowledgedBuffer.open(layout, config.buffer, writable=True) as buffer:
        buffer.root = root
        ingest = Ingest(config, buffer, Metrics(config).ingest, Hints(lambda: None))
        yield ingest, buffer
        ingest.close()


def ingest_on(root: Path, buffer: FrameBuffer, capacity: int) -> Ingest:
    """Real ingest on a buffer that is open."""
    config = settings(root, buffer={"capacity_frames": capacity})
    return Ingest(config, buffer, Metrics(config).ingest, Hints(lambda: None))


def step_until(ingest: Ingest, condition: Callable[[], Any]) -> None:
    """Step until the condition holds."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"not in time: {ingest.activity}"
        time.sleep(min(0.002, ingest.step()))


def waiting(root: Path, buffer: FrameBuffer) -> list[str]:
    """Names in the drop folder that the catalog knows nothing of, as they are."""
    folder, known = root / "drop", buffer.catalog.known_files()
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    return [name for name in names if known.get(name) != fact_of(folder / name, name)]


def fact_of(path: Path, name: str) -> FileFact:
    """What the catalog would say of a file."""
    status = path.stat()
    return FileFact(name, status.st_size, status.st_mtime_ns)


def ingest_all(root: Path, config: Settings | None = None) -> None:
    """Take everything that lies in the drop folder."""
    with running_ingest(root, config or settings(root)) as (ingest, buffer):
        step_until(ingest, lambda: not waiting(root, buffer))


def ingest_forever(root: Path) -> None:
    """Take whatever comes, until killed."""
    with running_ingest(root, settings(root)) as (ingest, _):
        acknowledge(root, "running now")
        while True:
            time.sleep(min(0.02, ingest.step()))


def frame(number: int) -> NewFrame:
    """A frame for the buffer, made from `image(number)` as ingest makes it."""
    data = image(number)
    return NewFrame(FileFact(f"{number}.png", len(data), number), digest_of(data), 1.0, 24, 40, fitted(data))


@cache
def fitted(data: bytes) -> FittedFrame:
    """A fresh decode at frame size. Raises RefusedImage."""
    return fit_frame(decode_image(data, max_bytes=300_000, max_pixels=100_000), HEIGHT, WIDTH)


def lease_frames(root: Path) -> None:
    """A round keeps its frames while others come and go, in a buffer that then grows."""
    layout, config = StateLayout(root / "state"), settings(root).buffer
    layout.create()
    if not layout.frames_zarr.exists():
        (layout.buffer / ".left.partial").touch()
    with AcknowledgedBuffer.open(layout, config, writable=True) as buffer:
        buffer.root = root
        acknowledge(root, "lease released")
        buffer.release(7)  # as the daemon does when it starts and the round is gone
        buffer.append([frame(number) for number in range(5)])
        acknowledge(root, *(f"lease {record.digest}" for record in buffer.lease(7, limit=4)))
        buffer.append([frame(number) for number in range(5, 14)])
        acknowledge(root, "lease released")
        buffer.release(7)
    grown = config.model_copy(update={"capacity_frames": CAPACITY + 4})
    with AcknowledgedBuffer.open(layout, grown, writable=True) as buffer:
        buffer.root = root
        buffer.append([frame(number) for number in range(14, 20)])


def open_buffer(root: Path, capacity: int) -> FrameBuffer:
    """The buffer of the state directory below `root`, for `capacity` frames."""
    config = settings(root).buffer.model_copy(update={"capacity_frames": capacity})
    return FrameBuffer.open(StateLayout(root / "state"), config, writable=True)


def append_frames(root: Path, numbers: list[int], capacity: int) -> None:
    """The frames of these numbers are appended."""
    with open_buffer(root, capacity) as buffer:
        buffer.append([frame(number) for number in numbers])


def grown_buffer(root: Path) -> BufferSettings:
    """Settings of the buffer as `lease_frames` leaves it."""
    return settings(root).buffer.model_copy(update={"capacity_frames": CAPACITY + 4})


def take_and_move(root: Path) -> None:
    """As `ingest_all`; then committed files lie in `done`, refused ones in `quarantine`."""
    ingest_all(root, moving(root))


def video_settings(root: Path) -> Settings:
    """Settings under which a video takes several commits, and frames leave the buffer meanwhile."""
    return settings(
        root, watch={"advanced": {"group_frames": 4}}, videos={"seconds": VIDEO_SECONDS}, buffer={"capacity_frames": 20}
    )


def take_videos(root: Path) -> None:
    """Take everything that lies in the drop folder, videos too; the worker of videos and ingest in turn."""
    config = video_settings(root)
    with running_ingest(root, config) as (ingest, buffer):
        worker = VideoWorker(config)

        def finished() -> bool:
            worker.step()
            records = read_video_records(StateLayout(config.state).videos)
            left = [name for name in waiting(root, buffer) if not name.endswith(VIDEO_SUFFIXES)]
            return not left and sum(record.state != "begun" for record in records.values()) == VIDEOS

        step_until(ingest, finished)
        worker.close()


def moving(root: Path) -> Settings:
    """Settings that move originals away once the catalog knows them."""
    folders = {"done_folder": root / "done", "quarantine": root / "quarantine"}
    return settings(root, watch={"after_commit": "move", **folders})


def rebuild_buffer(root: Path) -> None:
    """A buffer is rebuilt beside itself, as for another frame size, takes its place, and is compacted."""
    layout, config = StateLayout(root / "state"), moving(root)
    layout.create()
    with AcknowledgedBuffer.open(layout, config.buffer, writable=True) as buffer:
        buffer.root = root
        buffer.append([frame(number) for number in range(6)])
    assert resize_buffer(layout, config.buffer) == 6
    compact_buffer(layout, config.buffer, partial(missing_files, config.watch))


def move_refs(root: Path) -> None:
    """Two versions come and serve, one is rolled back from; pins and retention."""
    layout = StateLayout(root / "state")
    layout.create()
    registry = CheckpointRegistry(layout.checkpoints)
    weights = root / "weights.safetensors"
    weights.write_bytes(os.urandom(1000))
    for _ in range(2):
        version = registry.add(weights, manifest(), by="import").version
        acknowledge(root, f"moving {version}")
        registry.promote(version, by="operator", reason="test")
        acknowledge(root, f"moved {version}")
    target = registry.ref("previous")
    assert target is not None
    acknowledge(root, f"moving {target.version}")
    registry.roll_back(to=None, by="operator", reason="test")
    acknowledge(root, f"moved {target.version}")
    registry.pin(version, by="operator")
    registry.unpin(version, by="operator")
    registry.prune(keep=0)
    _promote_expected(root, registry, weights)


def _promote_expected(root: Path, registry: CheckpointRegistry, weights: Path) -> None:
    """As the gate does: only while the version that a candidate was compared with serves; then back by its number."""
    serving = registry.serving()
    assert serving is not None
    candidate = registry.add(weights, manifest(), by="gate").version
    acknowledge(root, f"moving {candidate}")
    registry.promote(candidate, by="gate", reason="test", expected=serving.version)
    acknowledge(root, f"moved {candidate}")
    acknowledge(root, f"moving {serving.version}")
    registry.roll_back(to=serving.version, by="operator", reason="test", expected=candidate)
    acknowledge(root, f"moved {serving.version}")
    assert candidate in registry.state().rolled_back
    registry.prune(keep=0)


def publish_mirrors(root: Path) -> None:
    """Two versions come to both mirrors, one after the other; then the first serves again."""
    for mirror in mirrors(root):
        for version in (1, 2, 1):
            if not mirror.holds(version, weights_of(version)):
                export(mirror, version)
            mirror.point(version)
            acknowledge(root, f"mirrored {mirror.name} {version}")
            mirror.prune({version})


def mirrors(root: Path) -> list[Mirror]:
    """The mirrors of `publish_mirrors`."""
    return [TritonMirror(root / "triton", max_batch=4), HuggingFaceMirror(root / "huggingface")]


def manifest() -> Manifest:
    """A manifest of weights that nobody loads."""
    classes = ({"name": "road", "color": (1, 2, 3)},)
    return Manifest(origin="import", created=1.0, network={"name": "daformer"}, classes=classes, input_height=HEIGHT,
                    input_width=WIDTH)  # fmt: skip


def run_round(root: Path) -> None:
    """A round's folder from spec to verdict, with two training states; then it is pruned."""
    layout = StateLayout(root / "state")
    layout.create()
    store = RoundStore(layout.rounds)
    for _ in range(2):
        spec = RoundSpec(
            round=store.next_number(), incumbent=1, released=1, train_frames=(1, 2), holdout_frames=(3,),
            settings=json.loads(settings(root).model_dump_json()), created=1.0, trigger="manual",
        )  # fmt: skip
        folder = store.create(spec)
        folder.enter("training", starts=(RoundStart(at=1.0, step=0),))
        for step in (1, 2):
            (folder.states.begin(step) / "state.json").write_text(str(step))
            folder.states.publish(step)
            acknowledge(root, f"state {spec.round} {step}")
        folder.write_scores(RoundScores(status="stopped", reason="SIGTERM", steps=2, seconds=1.0))
        folder.remove_scores()
        folder.write_scores(RoundScores(status="failed", reason="test", steps=2, seconds=1.0))
        verdict = {"round": spec.round, "decision": "rejected", "reason": "test", "checks": [], "at": 1.0}
        folder.write_verdict(Verdict.model_validate(verdict))
        folder.enter("judged")
        folder.enter("failed", reason="test")
        acknowledge(root, f"verdict {spec.round}")
    store.remove_states(spare=None)
    store.prune(keep=2)


def import_source(root: Path) -> None:
    """Labelled images are imported; a second import with one more replaces the first."""
    layout = StateLayout(root / "state")
    layout.create()
    for number in (1, 2):
        for folder, mode in (("images", "RGB"), ("labels", "L")):
            (root / folder).mkdir(exist_ok=True)
            path = root / folder / f"{number}.png"
            if not path.exists():
                Image.new(mode, (48, 32), 1 if mode == "L" else (number, 2, 3)).save(path)
        found = import_labelled(settings(root), layout)
        acknowledge(root, f"source {len(found)}")


JOBS: dict[str, Callable[[Path], None]] = {
    "ingest": ingest_all,
    "originals": take_and_move,
    "leases": lease_frames,
    "rebuild": rebuild_buffer,
    "registry": move_refs,
    "mirrors": publish_mirrors,
    "rounds": run_round,
    "source": import_source,
}
"""What the processes do that are killed at a named place."""
TAKING = ("ingest", "originals")
"""Jobs that take what `drop_files` dropped."""
