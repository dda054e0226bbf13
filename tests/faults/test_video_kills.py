"""SIGKILL in the middle of videos: at the next start the rest of the frames comes, and none comes twice."""

import io
import sqlite3
from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest

from storage.checking import check_state, repair_state
from storage.durable.digest import digest_in_video, digest_of
from storage.layout import StateLayout
from storage.media.images import fit_frame
from storage.media.videos import HEAD_BYTES, Video, video_format
from tests.faults import processes, world
from tests.video_files import make_video

pytest.importorskip("av")
FRAMES, SPACING = 14, world.VIDEO_SECONDS
PLACES = (
    "frames.written", "frames.synced", "frames.folder_synced", "transaction.filled", "transaction.committed",
    "frames.discarded",
)  # fmt: skip
"""What a commit passes."""
Tables = tuple[dict[str, int], dict[str, str], list[sqlite3.Row]]


def drop_videos(root: Path) -> dict[str, bytes]:
    """Two videos, a copy of one, one without its index, and an image; by name."""
    files = {
        "cam/a.mp4": make_video(FRAMES),
        "cam/b.mkv": make_video(FRAMES, first=3, container="matroska", codec="mpeg4"),
        "copy.mp4": make_video(FRAMES),
        "cut.mp4": make_video(FRAMES)[:900],
        "image.png": world.image(1),
    }
    for name, content in files.items():
        (root / "drop" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "drop" / name).write_bytes(content)
    return files


def expected_frames(content: bytes) -> set[str]:
    """Digests of the frames that are to be taken of a video, by a fresh decode."""
    form = video_format(content[:HEAD_BYTES])
    assert form is not None
    path = io.BytesIO(content)
    with Video("video", path, form, max_pixels=100_000, max_aspect=20.0) as video:
        shots = [shot for shot in video.shots(SPACING) if shot is not None]
        assert all(fit_frame(shot.pixels(), world.HEIGHT, world.WIDTH).valid_height for shot in shots)
    return {digest_in_video(digest_of(content), shot.microseconds) for shot in shots}


def tables(root: Path) -> Tables:
    """Digest -> frame of all that was ever committed; path -> state; the rows of the frames that are there."""
    catalog = StateLayout(root / "state").catalog
    with closing(sqlite3.connect(f"{catalog.absolute().as_uri()}?mode=ro", uri=True)) as connection:
        connection.row_factory = sqlite3.Row
        ever = dict(map(tuple, connection.execute("SELECT digest, frame FROM digests")))
        states = dict(map(tuple, connection.execute("SELECT path, state FROM files")))
        return ever, states, connection.execute("SELECT * FROM frames ORDER BY id").fetchall()


def check(root: Path, files: dict[str, bytes], *, finished: bool) -> None:
    """Every frame is committed at most once, and no video is known before all of its frames are."""
    layout = StateLayout(root / "state")
    wrong = [problem for problem in check_state(layout, read_data=True) if finished or problem.severity == "error"]
    assert not wrong
    if not layout.catalog.exists():
        return
    ever, states, frames = tables(root)
    videos = {name: digest_of(files[name]) for name in ("cam/a.mp4", "cam/b.mkv", "copy.mp4")}
    wanted = {name: expected_frames(files[name]) for name in videos}
    assert {len(digests) for digests in wanted.values()} == {FRAMES}
    possible = set().union(*wanted.values(), videos.values(), {digest_of(files["image.png"])})
    assert set(ever) <= possible, "a frame of nothing that was dropped"
    numbers = [number for digest, number in ever.items() if digest not in videos.values()]
    assert len(set(numbers)) == len(numbers), "two frames of one number"
    for name, digest in videos.items():
        if states.get(name) is not None or digest in ever:
            assert wanted[name] <= set(ever), f"{name} is known, but not all of its frames were committed"
    acknowledged = world.acknowledged(root, "frame")
    assert set(acknowledged) <= set(ever), "acknowledged and gone"
    assert set(Counter(acknowledged).values()) <= {1}, "a frame was committed twice"
    if finished:
        assert set(ever) == possible
        assert max(row["id"] for row in frames) == 2 * FRAMES + 1, "more frames were committed than there are"
        assert Counter(states.values()) == {"committed": 3, "duplicate": 1, "refused": 1}


@pytest.fixture(scope="module")
def passed(tmp_path_factory: pytest.TempPathFactory) -> Counter[str]:
    """How often each place is passed when nothing happens."""
    root = tmp_path_factory.mktemp("videos")
    drop_videos(root)
    return Counter(processes.passes(world.take_videos, root))


@pytest.mark.parametrize("place", PLACES)
def test_killed_in_the_middle_of_a_video_it_takes_the_rest(tmp_path: Path, passed: Counter[str], place: str):
    assert passed[place] >= 4, "the videos take several commits"
    for number in range(1, passed[place] + 1):
        root = tmp_path / str(number)
        root.mkdir()
        files = drop_videos(root)
        killed = processes.killed_at(world.take_videos, root, f"{place}:{number}")
        assert killed or number > 4, "how many groups there are depends on the clock, but not below that"
        check(root, files, finished=False)
        assert not repair_state(StateLayout(root / "state"), read_data=True).left
        world.take_videos(root)
        check(root, files, finished=True)
