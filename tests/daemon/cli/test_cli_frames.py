"""`mfmd frames` by hand: files, messages and exit codes. Without videos it is held by tests/daemon/test_app.py."""

import json

import pytest

from daemon.exit_codes import ExitCode
from tests.video_files import make_video

pytest.importorskip("av")


def test_frames_of_named_videos(mfmd, tmp_path):
    (tmp_path / "a.mp4").write_bytes(make_video(35))
    command = ("frames", str(tmp_path / "a.mp4"), "--into", str(tmp_path / "out"), "--config", str(tmp_path / "none"))
    answer = mfmd(*command)
    assert answer.code == ExitCode.OK and "4 frames" in answer.out
    files = sorted((tmp_path / "out").iterdir())
    before = {path.name: path.read_bytes() for path in files}
    assert [path.name.rsplit("-", 1)[1] for path in files] == [f"00000{second}.000000.png" for second in range(4)]
    files[2].unlink()
    again = json.loads(mfmd(*command, "--json").out)
    assert again == [{"video": str(tmp_path / "a.mp4"), "written": 1, "there": 3, "damage": ""}]
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before, "the same files"
    assert mfmd(*command, "--every", "0.5").code == ExitCode.OK
    assert len(list((tmp_path / "out").iterdir())) == 7


def test_a_video_that_cannot_be_read_is_reported(mfmd, tmp_path):
    (tmp_path / "cut.mp4").write_bytes(make_video()[:1000])
    (tmp_path / "b.mkv").write_bytes(make_video(12, container="matroska"))
    names = [str(tmp_path / name) for name in ("cut.mp4", "missing.mp4", "b.mkv")]
    answer = mfmd("frames", *names, "--into", str(tmp_path / "out"), "--config", str(tmp_path / "none"), "--json")
    assert answer.code == ExitCode.FAILURE
    assert [item.get("reason") for item in json.loads(answer.out)] == ["truncated", "not_found", None]
    assert len(list((tmp_path / "out").iterdir())) == 2
