"""One file whose handling fails, by what it is or at any step: it costs itself only, and is refused and counted."""

import os

import pytest

from daemon.ingest import originals
from daemon.ingest.admission import Admission
from daemon.ingest.decode import Decoder
from daemon.watch import watcher
from storage.buffer import catalog, frame_writer
from tests.faults.drop_world import picture

YEAR = 31_556_952 * 10**9
MOMENTS = [0, 1, -1, -YEAR, -68 * YEAR, -200 * YEAR, 68 * YEAR, 292 * YEAR, 293 * YEAR, 430 * YEAR, 476 * YEAR,
           600 * YEAR, 2**63 - 1, 2**63, 2**64, -(2**63) - 1]  # fmt: skip
"""Modification times (nanoseconds since the epoch); a file system keeps those that it can."""
NAMES = [b" .png", b"   ", b"-x.png", b"\x01\x1b[2J.png", b"\xe2\x80\x8fright\xe2\x80\xae.png", b"\xed\xa0\x80.png",
         b"nul\\0.png", b"\xff" * 251 + b".png", b"a" * 255, b"';DROP TABLE files;--.png", b'{"a":1}\n{"b":2}.png',
         b"<script>alert(1)</script>"[:24] + b".png", b'x{reason="a\nb"} 1.png',
         b"%s%n{}{0}.png", b"\xc2\x85\xe2\x80\xa8.png"]  # fmt: skip


def test_times_modes_and_names_of_every_kind(drop_world):
    world = drop_world(advanced={"rescan_seconds": 0.05})
    for number, moment in enumerate(MOMENTS):
        path = world.drop(f"{number}.png", picture(number))
        os.utime(path, ns=(0, moment))
    for number, mode in enumerate((0o400, 0o7777, 0o444)):
        world.drop(f"mode-{number}.png", picture(100 + number)).chmod(mode)
    for number, name in enumerate(map(os.fsdecode, NAMES)):
        world.drop(name, picture(200 + number))
    os.truncate(world.drop("sparse.png", b""), 2**26 + 1)
    world.dropped["sparse.png"] = set()
    kept = world.settled()
    assert len(kept.committed) == len(MOMENTS) + 3 + len(NAMES)
    assert world.buffer.catalog.counts().refused == {"too_many_bytes": 1}


def test_a_refusal_may_quote_what_is_no_text(drop_world):
    world = drop_world()
    (world.folder / "link.png").symlink_to(os.fsdecode(b"/tmp/\xff\xfe.png"))
    world.dropped["link.png"] = set()
    world.drop("good.png", picture(1))
    assert world.settled().committed == {"good.png"}
    assert r"\udcff" in world.buffer.catalog.refused()[0].detail


def poison(monkeypatch, owner, function):
    """Let a function raise whenever `bad.png` is in its arguments."""
    real = getattr(owner, function)

    def method(*arguments, **named):
        if "bad.png" in repr((arguments, named)):
            raise OverflowError("Python int too large to convert to SQLite INTEGER")
        return real(*arguments, **named)

    monkeypatch.setattr(owner, function, method)


@pytest.mark.parametrize(
    ("owner", "function", "recorded"),
    [
        (Decoder, "_decode", True),
        (Admission, "judge", True),
        (frame_writer, "_insert", True),
        (catalog, "note_file", False),
        (frame_writer, "note_file", True),
    ],
    ids=["decode", "admission", "commit", "refusal", "row"],
)
def test_a_file_that_fails_at_one_step_is_refused_alone(drop_world, monkeypatch, owner, function, recorded):
    world = drop_world(advanced={"group_seconds": 0.1, "rescan_seconds": 0.05})
    poison(monkeypatch, owner, function)
    names = [f"{number}.png" for number in range(4)]
    for number, name in enumerate([*names[:2], "bad.png", *names[2:]]):
        world.drop(name, picture(number) if recorded or name != "bad.png" else b"")
    world.until(lambda: world.buffer.catalog.counts().frames == 4)
    world.until(lambda: world.value("mfmd_ingest_rejected_total", reason="unexpected") == 1)
    rescans = world.value("mfmd_watcher_rescans_total")
    world.until(lambda: world.value("mfmd_watcher_rescans_total") >= rescans + 2)
    world.ingest._watcher.rescan_soon()
    world.until(lambda: world.ingest.activity[0].pending == 0)
    assert world.value("mfmd_ingest_rejected_total", reason="unexpected") == 1
    assert {record.name for record in world.buffer.records()} == set(names)
    assert world.buffer.catalog.counts().refused == ({"unexpected": 1} if recorded else {})
    assert world.ingest.activity[1].state == "running"
    if recorded:
        assert "OverflowError" in world.buffer.catalog.refused()[0].detail


@pytest.mark.parametrize(("owner", "function"), [(watcher, "find_arrival"), (originals, "find_arrival")])
def test_a_file_that_cannot_even_be_looked_at_stops_nothing(drop_world, tmp_path, monkeypatch, owner, function):
    world = drop_world(after_commit="move", done_folder=tmp_path / "done")
    poison(monkeypatch, owner, function)
    for number, name in enumerate(["0.png", "bad.png", "1.png"]):
        (world.folder / name).write_bytes(picture(number))
    world.until(lambda: {item.name for item in (tmp_path / "done").glob("*.png")} == {"0.png", "1.png"})
    assert (world.folder / "bad.png").exists()
    world.tampered = True
