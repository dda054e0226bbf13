"""SIGKILL in the middle of videos: at the next start the rest of the frames comes, and none comes twice."""

import io
import os
import sqlite3
from collections import Counter
from contextlib import closing
from functools import cache
from pathlib import Path

import pytest

from daemon.videos.frame_files import FrameFiles
from storage.buffer.catalog_records import FileFact
from storage.buffer.video_records import read_video_records
from storage.checking.state import check_state, repair_state
from storage.durable.digest import digest_of
from storage.layout import StateLayout
from tests.faults import processes, world
from tests.video_files import make_video

pytest.importorskip("av")
FRAMES, MODIFIED = 14, 10**18
"""Frames of a video, and when each file was changed (ns)."""
PLACES = (
    "frames.written", "frames.synced", "frames.folder_synced", "transaction.filled", "transaction.committed",
    "frames.discarded", "file.written", "file.synced", "file.renamed", "file.done", "line.written", "line.synced",
)  # fmt: skip
"""What a commit of frames, the writing of a frame's file, and a record of a video pass."""
SOME, MANY = pytest.param(2, id="some"), pytest.param(12, id="many", marks=pytest.mark.nightly)
"""At most this many kills at one place, spread evenly."""
Tables = tuple[dict[str, int], dict[str, str], list[sqlite3.Row]]


@cache
def videos() -> dict[str, bytes]:
    """Two videos, a copy of one, one without its index, and an image; by name."""
    video = make_video(FRAMES)
    other = make_video(FRAMES, first=3, container="matroska", codec="mpeg4")
    return {
        "cam/a.mp4": video,
        "cam/b.mkv": other,
        "copy.mp4": video,
        "cut.mp4": video[:900],
        "image.png": world.image(1),
    }


def drop_videos(root: Path) -> dict[str, bytes]:
    """Write them all into the drop folder."""
    for name, content in videos().items():
        path = root / "drop" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        os.utime(path, ns=(MODIFIED, MODIFIED))
    return videos()


@cache
def expected_frames(name: str) -> set[str]:
    """Digests of the files that a video is to be turned into, by a fresh decode."""
    content, config = videos()[name], world.video_settings(Path("/nowhere"))
    fact = FileFact(name, len(content), MODIFIED)
    files = FrameFiles(io.BytesIO(content), fact, digest_of(content), config.videos, config.watch)
    return {digest_of(frame.content()) for frame in files if frame is not None}


def tables(root: Path) -> Tables:
    """Digest -> frame of all that was ever committed; path -> state; the rows of the frames that are there."""
    catalog = StateLayout(root / "state").catalog
    with closing(sqlite3.connect(f"{catalog.absolute().as_uri()}?mode=ro", uri=True)) as connection:
        connection.row_factory = sqlite3.Row
        ever = dict(map(tuple, connection.execute("SELECT digest, frame FROM digests")))
        states = dict(map(tuple, connection.execute("SELECT path, state FROM files")))
        return ever, states, connection.execute("SELECT * FROM frames ORDER BY id").fetchall()


def check(root: Path, files: dict[str, bytes], *, finished: bool) -> None:
    """Every frame is committed at most once, and no video is done before all of its frames are."""
    layout = StateLayout(root / "state")
    wrong = [problem for problem in check_state(layout, read_data=True) if finished or problem.severity == "error"]
    assert not wrong
    if not layout.catalog.exists():
        return
    ever, states, frames = tables(root)
    videos = {name: record.state for name, record in read_video_records(layout.videos).items()}
    wanted = {name: expected_frames(name) for name in ("cam/a.mp4", "cam/b.mkv", "copy.mp4")}
    assert {len(digests) for digests in wanted.values()} == {FRAMES}
    possible = set().union(*wanted.values(), {digest_of(files["image.png"])})
    assert set(ever) <= possible, "a frame of nothing that was dropped"
    assert len(set(ever.values())) == len(ever), "two frames of one number"
    for name, state in videos.items():
        if state in ("committed", "duplicate"):
            assert wanted[name] <= set(ever), f"{name} is done, but not all of its frames were committed"
    acknowledged = world.acknowledged(root, "frame")
    assert set(acknowledged) <= set(ever), "acknowledged and gone"
    assert set(Counter(acknowledged).values()) <= {1}, "a frame was committed twice"
    if finished:
        assert set(ever) == possible
        assert max(row["id"] for row in frames) == 2 * FRAMES + 1, "more frames were committed than there are"
        assert set(states.values()) == {"committed"}
        assert Counter(videos.values()) == {"committed": 2, "duplicate": 1, "refused": 1}
        left = {path.relative_to(root / "drop").as_posix() for path in (root / "drop").rglob("*") if path.is_file()}
        assert left == set(files), "files of frames stay in the folder"


@pytest.fixture(scope="module")
def passed(tmp_path_factory: pytest.TempPathFactory) -> Counter[str]:
    """How often each place is passed when nothing happens."""
    root = tmp_path_factory.mktemp("videos")
    drop_videos(root)
    return Counter(processes.passes(world.take_videos, root))


@pytest.mark.parametrize("kills", [SOME, MANY])
@pytest.mark.parametrize("place", PLACES)
def test_killed_in_the_middle_of_a_video_it_takes_the_rest(
    tmp_path: Path, passed: Counter[str], place: str, kills: int
):
    assert passed[place] >= 4, "the videos take several commits, and more files"
    for number in range(1, passed[place] + 1, -(-passed[place] // kills)):
        root = tmp_path / str(number)
        root.mkdir()
        files = drop_videos(root)
        killed = processes.killed_at(world.take_videos, root, f"{place}:{number}")
        assert killed or number > 4, "how many groups there are depends on the clock, but not below that"
        check(root, files, finished=False)
        assert not repair_state(StateLayout(root / "state"), read_data=True).left
        world.take_videos(root)
        check(root, files, finished=True)
