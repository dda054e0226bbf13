"""The crop benchmark: photographs that are like photographs, arms that read the same crops, ratios turn by turn."""

import sys
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from crop_arms import Peer, Sample, Spot, Streamed
from crop_photos import bytes_per_pixel, draw_photo, write_photos
from crops import build_arms, ratio, report, time_arms

PHOTOS = [draw_photo(seed, 96, 160) for seed in range(2)]


def test_photographs_pack_like_photographs(tmp_path: Path) -> None:
    """Flat drawings would take a tenth of it, noise twice as much; CamVid's frames take 0.34 and 1.40."""
    write_photos(tmp_path, [draw_photo(0, 512, 1024)])
    jpeg, png = bytes_per_pixel(tmp_path)
    assert 0.2 < jpeg < 0.5 and 0.9 < png < 1.9
    with pytest.raises(ValueError, match=r"no \.jpg file"):
        bytes_per_pixel(tmp_path / "png")


def test_every_arm_reads_the_same_crops(tmp_path: Path) -> None:
    with ExitStack() as held:
        arms, peer = build_arms(PHOTOS, tmp_path, None, held)
        taken = time_arms(arms, PHOTOS, 3, 32)
        first = {arm.name: arm.read(Spot(1, 5, 60, 32)).crc32 for arm in arms if arm.lossless}
    assert "left out" in peer
    assert len(arms) == len(taken) == 9 and len(first) == 7 and len(set(first.values())) == 1
    assert all(len(values) == 3 and min(values) > 0 for values in taken.values())
    table = report(arms, taken).splitlines()
    assert len(table) == 2 + len(arms) and all(line.count("|") == 6 for line in table)
    assert next(arm for arm in arms if arm.name == "buffer, none").stored > PHOTOS[0].nbytes


def test_other_pixels_than_were_drawn_are_an_error(tmp_path: Path) -> None:
    with ExitStack() as held:
        arms, _ = build_arms(PHOTOS, tmp_path, None, held)
        with pytest.raises(ValueError, match=r"buffer, none: .* other pixels"):
            time_arms(arms, [np.zeros_like(photo) for photo in PHOTOS], 1, 32)


def test_ratios_are_taken_turn_by_turn() -> None:
    """A turn in which the machine was busy slows both and leaves the ratio alone."""
    assert ratio([8.0, 80.0, 8.0], [1.0, 10.0, 1.0]) == "8.00 (8.00-8.00)"


def test_the_peer_is_asked_by_line_and_takes_the_time(tmp_path: Path) -> None:
    """A process that speaks the protocol stands for LitData, which lives in an environment of its own."""
    python = tmp_path / "python"
    python.write_text(
        f"#!{sys.executable}\nimport sys\nif sys.argv[2] == 'serve':\n    print('Peer 1.0', flush=True)\n"
        "    for line in sys.stdin:\n        print('0.25', sum(map(int, line.split()[1:])), flush=True)\n"
    )
    python.chmod(0o755)
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "chunk").write_bytes(bytes(60))
    with ExitStack() as held:
        peer = Peer(python, tmp_path, tmp_path, held)
        arm = Streamed("peer", peer, tmp_path / "raw", 2)
        assert peer.version == "Peer 1.0" and arm.lossless and arm.stored == 30
        assert arm.read(Spot(1, 2, 3, 4)) == Sample(0.25, 10)


def test_a_peer_that_does_not_start_is_an_error(tmp_path: Path) -> None:
    with ExitStack() as held, pytest.raises(RuntimeError, match="peer's process ended"):
        Peer(Path("/bin/true"), tmp_path, tmp_path, held)
