"""`mfmd buffer`: what it prints, exit codes, and what it refuses; what it does is tested in tests/storage."""

import io
import json
import re
import tarfile

import numpy as np
import pytest
from PIL import Image

from storage.buffer.catalog_records import FileFact
from storage.buffer.frames import FrameBuffer, NewFrame
from storage.layout import StateLayout
from storage.media.images import fit_frame

FRAMES = 5


@pytest.fixture
def layout(settings):
    return StateLayout(settings.state)


@pytest.fixture
def filled(settings, layout):
    """A closed buffer of five frames of wide images, files and all."""
    layout.create()
    frames = []
    for number in range(FRAMES):
        name = f"cam{number % 2}/{number}.png"
        file = settings.watch.folder / name
        file.parent.mkdir(exist_ok=True)
        pixels = np.full((24, 64, 3), 40 * number, np.uint8)
        Image.fromarray(pixels).save(file)
        status = file.stat()
        fact = FileFact(name, status.st_size, status.st_mtime_ns)
        frame, digest = fit_frame(pixels, 48, 64), f"{number}f" * 32  # only the first is below a tenth: held out
        frames.append(NewFrame(fact, digest, 1e9 + number, 24, 64, frame, f"cam{number % 2}"))
    with FrameBuffer.open(layout, settings.buffer, writable=True) as buffer:
        return buffer.append(frames)


def set_buffer(config, height, width, capacity):
    """Do what the command says is to be done in the configuration."""
    text = config.read_text()
    assert text.count("{height: 48, width: 64, capacity_frames: 32,") == 1
    new = f"{{height: {height}, width: {width}, capacity_frames: {capacity},"
    config.write_text(text.replace("{height: 48, width: 64, capacity_frames: 32,", new))


def test_info_for_people_and_for_programs(mfmd, filled):
    answer = mfmd("buffer", "info")
    assert answer.code == 0 and answer.err == ""
    lines = dict(line.split(maxsplit=1) for line in answer.out.splitlines())
    assert lines["frames"].startswith("5 of 32, ") and lines["size"] == "64x48, tiles of at most 32"
    assert lines["sources"] == "cam0 3, cam1 2" and lines["leases"] == "-"
    assert re.fullmatch(r"frames \d\d kB, catalog \d+ kB", lines["disk"])
    assert lines["captured"].startswith("2001-09-0") and lines["ever"] == "5 committed, 0 left"
    found = json.loads(mfmd("buffer", "info", "--json").out)
    assert (found["frames"], found["sources"], found["committed_total"]) == (5, {"cam0": 3, "cam1": 2}, 5)


def test_info_beside_a_daemon_that_writes_and_leases(mfmd, filled, settings, layout):
    with layout.lock(), FrameBuffer.open(layout, settings.buffer, writable=True) as buffer:
        buffer.lease(12, limit=2)
        answer = mfmd("buffer", "info")
        assert answer.code == 0 and "round 12: 2 frames" in answer.out
        assert json.loads(mfmd("buffer", "info", "--json").out)["leases"] == {"12": 2}


def test_a_label_with_a_newline_stays_on_its_line(mfmd, filled, settings, layout):
    with FrameBuffer.open(layout, settings.buffer, writable=True) as buffer, buffer.catalog.transaction() as connection:
        connection.execute("UPDATE frames SET source = 'a' || char(10) || 'b' WHERE source = 'cam1'")
    assert r"sources    a\nb 2, cam0 3" in mfmd("buffer", "info").out.splitlines()


def test_export_beside_a_daemon(mfmd, filled, settings, layout, tmp_path):
    with layout.lock(), FrameBuffer.open(layout, settings.buffer, writable=True):
        answer = mfmd("buffer", "export", tmp_path / "out")
    assert answer == (0, f"5 frames -> {tmp_path / 'out'}\n", "")
    for number in range(FRAMES):
        with Image.open(tmp_path / "out" / f"{number + 1:08d}.png") as image:
            assert image.size == (64, 24) and image.getpixel((10, 10)) == (40 * number,) * 3


def test_export_options(mfmd, filled, tmp_path):
    held = sum(record.holdout for record in filled)
    assert held == 1
    counts = {}
    for option, format in (("--holdout", "jpeg"), ("--train", "webdataset")):
        answer = mfmd("buffer", "export", tmp_path / format, option, "--format", format, "--json")
        counts[option] = json.loads(answer.out)
    assert counts["--holdout"] == {"frames": held, "format": "jpeg", "folder": str(tmp_path / "jpeg")}
    assert counts["--train"]["frames"] == FRAMES - held
    assert len(list((tmp_path / "jpeg").glob("*.jpg"))) == held
    with tarfile.open(tmp_path / "webdataset" / "frames-000000.tar") as tar:
        images = [tar.extractfile(name).read() for name in tar.getnames() if name.endswith(".jpg")]
    assert [Image.open(io.BytesIO(data)).size for data in images] == [(64, 24)] * (FRAMES - held)
    assert json.loads(mfmd("buffer", "export", "few", "--limit", 2, "--json").out)["frames"] == 2
    assert mfmd("buffer", "export", "none", "--limit", 0).code == 2
    assert mfmd("buffer", "export", "none", "--format", "gif").code == 2


def test_export_refuses_a_folder_that_is_not_empty_or_that_is_watched(mfmd, filled, settings, tmp_path):
    assert mfmd("buffer", "export", "out").code == 0
    answer = mfmd("buffer", "export", "out")
    assert answer.code == 1
    assert answer.err.startswith(f"error[export_refused]: {tmp_path / 'out'}: holds files already; name a new or")
    before = sorted(settings.watch.folder.rglob("*"))
    answer = mfmd("buffer", "export", "drop/copies")
    assert answer.code == 1 and answer.err.startswith("error[export_refused]: drop/copies lies in watch.folder")
    assert sorted(settings.watch.folder.rglob("*")) == before


def test_resize_then_the_configuration_as_it_says(mfmd, filled, config):
    answer = mfmd("buffer", "resize", "--height", 96, "--width", 128, "--capacity", 4)
    assert answer.code == 0
    assert answer.out.splitlines() == [
        "4 frames are 128x96 now.",
        "Before `mfmd run`, set in mfmd.yaml: buffer.height 96, buffer.width 128, buffer.capacity_frames 4.",
    ]
    assert "resizing 1/4" in answer.err
    answer = mfmd("buffer", "export", "out")
    assert answer.code == 1 and "error[buffer_mismatch]" in answer.err and "mfmd buffer resize" in answer.err
    set_buffer(config, 96, 128, 4)
    assert mfmd("buffer", "export", "out", "--json").code == 0
    with Image.open("out/00000002.png") as image:
        assert image.size == (128, 48) and image.getpixel((50, 20)) == (40,) * 3
    assert mfmd("check", "--read-data").code == 0


def test_resize_for_programs_keeps_all_frames_unless_told(mfmd, filled):
    answer = mfmd("buffer", "resize", "--height", 32, "--width", 32, "--json")
    assert json.loads(answer.out) == {"frames": 5, "height": 32, "width": 32, "capacity_frames": 32}


def test_resize_refuses_what_the_configuration_could_not_say(mfmd, filled, config):
    config.write_text(config.read_text().replace("reserve_bytes: 0", "reserve_bytes: 0, max_bytes: 100000"))
    assert mfmd("buffer", "resize", "--height", 16, "--width", 64).code == 2
    answer = mfmd("buffer", "resize", "--height", 480, "--width", 640)
    assert answer.code == 2
    assert answer.err.startswith("error[config_invalid]: mfmd.yaml: buffer: max_bytes: 100000 is less than 8 frames")
    assert json.loads(mfmd("buffer", "info", "--json").out)["height"] == 48


def test_resize_refuses_leased_frames(mfmd, filled, settings, layout):
    with FrameBuffer.open(layout, settings.buffer, writable=True) as buffer:
        buffer.lease(3)
    answer = mfmd("buffer", "resize", "--height", 32, "--width", 32)
    assert answer.code == 1 and "error[buffer_busy]" in answer.err and "rounds [3]" in answer.err


def test_compact_says_what_it_did_or_why_not(mfmd, filled, settings):
    (settings.watch.folder / "cam0" / "2.png").unlink()
    answer = mfmd("buffer", "compact")
    assert answer.code == 0
    first = "1 records of missing files were removed.\n"
    assert re.fullmatch(first + r"Catalog: \d+ kB -> \d\d kB\.\n", answer.out)
    for path in settings.watch.folder.rglob("*.png"):
        path.unlink()
    answer = mfmd("buffer", "compact")
    assert answer.code == 0 and "Records were kept: none of the files is in" in answer.out
    found = json.loads(mfmd("buffer", "compact", "--json").out)
    assert found["files_forgotten"] == 0 and found["kept_because"] and found["bytes_after"] <= found["bytes_before"]


def test_what_changes_the_buffer_needs_the_daemon_stopped(mfmd, filled, layout):
    with layout.lock():
        for arguments in (["compact"], ["resize", "--height", 32, "--width", 32]):
            answer = mfmd("buffer", *arguments)
            assert answer.code == 4 and "error[already_running]" in answer.err


def test_without_a_buffer_all_say_so_and_make_none(mfmd, settings):
    for arguments in (["info"], ["export", "out"], ["resize", "--height", 32, "--width", 32], ["compact"]):
        answer = mfmd("buffer", *arguments)
        assert answer.code == 1 and "no frame buffer yet; `mfmd run` creates it" in answer.err
    assert not settings.state.exists()
