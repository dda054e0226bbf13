"""Frames of video files: which are taken, limits before decoding, and what is made of damaged ones."""

import errno
import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from storage.errors import RefusedImage
from storage.media.videos import HEAD_BYTES, Video, video_format
from tests.video_files import TOLERANCE, grey_of, make_video

pytest.importorskip("av")
ROOT = Path(__file__).parents[3]
KINDS = [("mp4", "mpeg4"), ("mp4", "libx264"), ("matroska", "mpeg4"), ("matroska", "libx264"), ("webm", "libvpx-vp9")]


def opened(data: bytes, max_pixels: int = 100_000, max_aspect: float = 20.0) -> Video:
    form = video_format(data[:HEAD_BYTES])
    assert form is not None
    return Video("video", io.BytesIO(data), form, max_pixels=max_pixels, max_aspect=max_aspect)


def taken(data: bytes, spacing: float) -> tuple[list[tuple[float, int]], str]:
    """Times (seconds) and greys of what is taken, and the damage."""
    with opened(data) as video:
        frames = [frame for frame in video.frames(spacing) if frame is not None]
        found = [(frame.microseconds / 1e6, round(float(frame.pixels().mean()))) for frame in frames]
        return found, video.damage


def reason(data: bytes, **limits: float) -> str:
    with pytest.raises(RefusedImage) as caught, opened(data, **limits) as video:
        list(video.frames(1.0))
    return caught.value.reason


@pytest.mark.parametrize(("container", "codec"), KINDS)
def test_frames_are_taken_at_the_spacing(container: str, codec: str):
    data = make_video(container=container, codec=codec)
    for spacing, numbers in ((1.0, [0, 10, 20, 30]), (0.25, [0, 3, 5, 8, 10]), (60.0, [0]), (0.001, [0, 1, 2, 3])):
        found, damage = taken(data, spacing)
        assert not damage
        assert [time for time, _ in found][: len(numbers)] == pytest.approx([n / 10 for n in numbers], abs=0.002)
        assert [grey for _, grey in found][: len(numbers)] == pytest.approx(
            [grey_of(n) for n in numbers], abs=TOLERANCE
        )
    assert len(taken(data, 0.001)[0]) == 35


def test_pixels_are_upright():
    data = bytearray(make_video(3))
    matrix = data.index(b"tkhd") + 44
    turned = b"".join(value.to_bytes(4, "big", signed=True) for value in (0, 65536, 0, -65536, 0, 0))
    data[matrix : matrix + len(turned)] = turned
    with opened(bytes(data)) as video:
        frame = next(video.frames(1.0))
        assert frame is not None and (frame.height, frame.width) == (40, 24)
        assert frame.pixels().shape == (40, 24, 3)
        assert frame.pixels().flags.c_contiguous


def test_still_images_in_the_same_container_are_no_videos():
    assert video_format(b"\0\0\0\x1cftypheic") is None
    assert video_format(b"\0\0\0\x1cftypavif") is None
    assert video_format(b"\x89PNG\r\n\x1a\n\0\0\0\0") is None
    assert video_format(b"") is None


@pytest.mark.parametrize(("container", "codec"), KINDS)
def test_limits_on_the_picture(container: str, codec: str):
    data = make_video(3, container=container, codec=codec)
    assert reason(data, max_pixels=24 * 40 - 1) == "too_many_pixels"
    assert reason(data, max_aspect=1.5) == "aspect"
    with opened(data, max_pixels=24 * 40) as video:
        assert next(video.frames(1.0)) is not None


BOMB = """
import io, resource, sys
from storage.errors import RefusedImage
from storage.media.videos import Video
def open_it(data):
    try:
        with Video("video", io.BytesIO(data), sys.argv[1], max_pixels=1_000_000, max_aspect=20.0) as video:
            return "taken" if list(video.frames(1.0)) else "nothing"
    except RefusedImage as error:
        return error.reason
small, large = (open(path, "rb").read() for path in sys.argv[2:])
assert open_it(small) == "taken"
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
reason = open_it(large)
print(reason, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.parametrize(
    ("container", "codec", "honest"), [(*KINDS[0], True), (*KINDS[1], True), (*KINDS[2], False), (*KINDS[3], False)]
)
def test_a_huge_picture_never_gets_memory(tmp_path: Path, container: str, codec: str, honest: bool):
    """Also where the container promises a small one, and only the codec's own header tells."""
    large = make_video(2, container=container, codec=codec, height=6000, width=8000)
    if not honest:
        for side, small in ((8000, 640), (6000, 480)):
            large = large.replace(side.to_bytes(2, "big"), small.to_bytes(2, "big"))
    (tmp_path / "small").write_bytes(make_video(2, container=container, codec=codec, height=960, width=960))
    (tmp_path / "large").write_bytes(large)
    form = "mov" if container == "mp4" else "matroska"
    answer = subprocess.run(
        [sys.executable, "-c", BOMB, form, str(tmp_path / "small"), str(tmp_path / "large")],
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    found, megabytes = answer.stdout.split()
    assert found == "too_many_pixels" or (not honest and found in ("nothing", "truncated"))
    assert int(megabytes) < 20, "one picture takes 72 MB"


def test_a_cut_off_video_gives_what_is_there_and_says_so():
    data = make_video(60, container="matroska")
    found, damage = taken(data[: len(data) // 2], 0.5)
    assert [time for time, _ in found] == [number / 2 for number in range(len(found))]
    assert 0 < len(found) < 12
    assert "of 6.0 s" in damage
    assert [grey for _, grey in found] == pytest.approx(
        [grey_of(number * 5) for number in range(len(found))], abs=TOLERANCE
    )


@pytest.mark.parametrize(("codec", "where"), [("mpeg4", 0.5), ("mpeg4", 0.8), ("libx264", 0.5), ("libx264", 0.8)])
def test_damage_in_the_middle_is_passed_over_and_told(codec: str, where: float):
    whole = make_video(60, codec=codec, height=48, width=64, still=1)
    middle = int(len(whole) * where)
    broken = whole[:middle] + bytes(range(60)) + whole[middle + 60 :]
    (found, damage), (all_of_it, none) = taken(broken, 0.1), taken(whole, 0.1)
    assert "a part of it" in damage and not none
    assert len(all_of_it) == 60
    assert found[0] == all_of_it[0] and {time for time, _ in found} < {time for time, _ in all_of_it}


def test_files_that_give_nothing():
    data = make_video()
    assert reason(data[: len(data) // 2]) == "truncated", "the index of an MP4 is at its end"
    assert reason(data[:32]) == "truncated"
    assert reason(data[:16] + bytes(5000)) == "truncated"
    matroska = make_video(container="matroska")
    assert reason(matroska[:4] + b"\xff" * 3000) == "truncated"
    assert reason(_sound()) == "not_an_image"


def _sound() -> bytes:
    import av

    file = io.BytesIO()
    with av.open(file, "w", format="matroska") as output:
        stream = output.add_stream("pcm_s16le", rate=8000, layout="mono")
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        sound.sample_rate = 8000
        output.mux(stream.encode(sound))
    return file.getvalue()


class _Failing(io.BytesIO):
    """A disk that fails after so many reads."""

    left = 3

    def read(self, count: int | None = -1) -> bytes:
        self.left -= 1
        if self.left < 0:
            raise OSError(errno.EIO, "I/O error")
        return super().read(count)


@pytest.mark.parametrize("left", [0, 1, 3, 4])
def test_a_disk_that_fails_is_no_end_of_a_video(left: int):
    file = _Failing(make_video(300, container="matroska", codec="ffv1", height=120, width=160))
    file.left = left
    with (
        pytest.raises(OSError, match="I/O error"),
        Video("video", file, "matroska", max_pixels=100_000, max_aspect=20.0) as video,
    ):
        list(video.frames(1.0))


WITHOUT_EXTRA = """
import importlib.util, io, sys
sys.modules["av"] = None
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "av" else find(name, *rest)
from storage.errors import RefusedImage
from storage.media.videos import Video
try:
    Video("a.mp4", io.BytesIO(b"x"), "mov", max_pixels=1, max_aspect=1.0)
except RefusedImage as error:
    print(error.reason, error)
"""


def test_without_the_extra_it_says_which_one():
    answer = subprocess.run([sys.executable, "-c", WITHOUT_EXTRA], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert answer.stdout.startswith("needs_extra") and "mfmd[video]" in answer.stdout, answer.stderr
