"""The folder itself misbehaves: it goes, comes back, is another one, is not mounted; names and links of every kind."""

import os
import shutil

import pytest

from tests.faults.drop_world import DropWorld, picture

NAMES = [
    "plain.png",
    "with space.png",
    "new\nline.png",
    "tab\tand\rreturn.png",
    "grüße-日本語-🚗.png",
    "e\u0301 and é.png",
    "right\u202eleft.png",
    "[brackets]*?.png",
    "-rf.png",
    "quote'\"`$(x).png",
    "back\\slash.png",
    "deep\nfolder/grün/x.png",
    "long" + "x" * 240 + ".png",
    "no ending",
]
BYTES = [b"latin-\xe9.png", b"\xff\xfe\xfd.png", b"\xed\xa0\x80 surrogate.png", b"sub-\x80/inner-\x81.png"]


def test_a_root_that_is_removed_and_made_again_and_again(drop_world):
    world = drop_world(advanced={"rescan_seconds": 600.0})
    for turn in range(4):
        world.until(lambda: world.ingest.activity[0].state == "watching")
        for number in range(5):
            world.drop(f"{turn}-{number}.png", picture(10 * turn + number))
        world.settled_without_timer()
        shutil.rmtree(world.folder)
        world.until(lambda: world.ingest.activity[0].state == "missing")
        assert world.value("mfmd_watcher_state_info", state="missing") == 1
        world.folder.mkdir()
    assert len(world.kept().committed) == 20
    assert world.value("mfmd_watcher_restarts_total") == 3


def test_a_root_removed_while_its_files_are_taken(drop_world):
    """What was not read is lost with the folder, but nothing is committed that was not there, and the rest goes on."""
    world = drop_world()
    for number in range(200):
        world.drop(f"{number}.png", picture(number))
    world.until(lambda: 0 < len(world.buffer.records()) < 200)
    shutil.rmtree(world.folder)
    world.until(lambda: world.ingest.activity[0].state == "missing")
    world.until(lambda: not world.ingest.batch)
    known = world.buffer.catalog.known_files()
    gone = {name: versions for name, versions in world.dropped.items() if name not in known}
    assert gone, "the folder went in the middle"
    world.dropped = type(world.dropped)(set, {name: v for name, v in world.dropped.items() if name in known})
    world.kept()
    world.folder.mkdir()
    for name in gone:
        world.drop(name, picture(int(name.removesuffix(".png"))))
    assert len(world.settled().committed) == 200


def test_a_root_that_another_takes_the_place_of(drop_world):
    """As a mount does: the path is there all the time, device or inode are others."""
    world = drop_world(advanced={"rescan_seconds": 600.0})
    world.listening()
    world.drop("a.png", picture(1))
    world.settled_without_timer()
    for turn in range(3):
        made = world.folder.with_name(f"next-{turn}")
        made.mkdir()
        (made / f"{turn}.png").write_bytes(picture(10 + turn))
        world.promise(f"{turn}.png", picture(10 + turn))
        world.folder.rename(world.folder.with_name(f"old-{turn}"))
        made.rename(world.folder)
        world.until(lambda turn=turn: f"{turn}.png" in world.kept().committed)
    assert world.kept().committed == {"a.png", "0.png", "1.png", "2.png"}


def test_an_unmounted_folder_gives_nothing_and_forgets_nothing(drop_world):
    """Below the mount point lies another folder with a file of its own, as after a failed mount."""
    world = drop_world(marker="MOUNTED", stability_seconds=0.0)
    mounted, below = world.folder.with_name("mounted"), world.folder.with_name("below")
    (world.folder / "MOUNTED").touch()
    world.drop("a.png", picture(1))
    world.settled()
    below.mkdir()
    (below / "stray.png").write_bytes(picture(2))
    world.folder.rename(mounted)
    below.rename(world.folder)
    world.until(lambda: world.ingest.activity[0].state == "unmounted")
    for _ in range(20):
        world.ingest.step()
    assert "stray.png" not in world.buffer.catalog.known_files()
    world.folder.rename(below)
    mounted.rename(world.folder)
    world.drop("b.png", picture(3))
    assert world.settled().committed == {"a.png", "b.png"}
    assert world.value("mfmd_ingest_files_total", outcome="stored") == 2
    assert world.value("mfmd_ingest_files_total", outcome="duplicate") == 0


@pytest.mark.parametrize("mode", ["events", "polling"])
def test_names_of_every_kind(drop_world, mode):
    world = drop_world(mode=mode)
    world.until(lambda: world.ingest.activity[0].state == "watching")
    names = [*NAMES, *map(os.fsdecode, BYTES)]
    for number, name in enumerate(names):
        world.drop(name, picture(number))
    kept = world.settled()
    assert kept.committed == set(names)
    assert {record.name for record in world.buffer.records()} >= set(NAMES) | {r"latin-\xe9.png"}


def test_links(drop_world, tmp_path):
    """Into the folder they are what they point at; out of it, to nothing or in a circle they are refused, unread."""
    world = drop_world()
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "out.png").write_bytes(picture(1))
    world.drop("real/in.png", picture(2))
    links = {
        "inside.png": "real/in.png",
        "outside.png": str(secret / "out.png"),
        "up.png": "../secret/out.png",
        "folder.png": str(secret),
        "nothing.png": "nowhere.png",
        "circle.png": "circle.png",
        "passwords.png": "/etc/passwd",
    }
    for name, target in links.items():
        (world.folder / name).symlink_to(target)
        world.dropped[name] = set()
    world.promise("inside.png", picture(2))
    kept = world.settled()
    assert kept.committed | kept.duplicate == {"real/in.png", "inside.png"}
    assert kept.refused == links.keys() - {"inside.png"}
    assert world.buffer.catalog.counts().refused == {"outside_folder": 6}
    assert world.buffer.catalog.counts().committed_total == 1


def test_a_folder_that_becomes_a_link_out_of_the_tree(drop_world, tmp_path):
    """The name was seen as a file of a real folder; when it is read, the folder is a link to somewhere else."""
    world = drop_world(stability_seconds=0.5)
    outside = tmp_path / "outside"
    outside.mkdir()
    world.drop("sub/a.png", picture(1))
    world.until(lambda: world.ingest.activity[0].pending == 1)
    (world.folder / "sub").rename(tmp_path / "was")
    shutil.copy2(tmp_path / "was" / "a.png", outside / "a.png")
    (world.folder / "sub").symlink_to(outside)
    world.until(lambda: "sub/a.png" in world.buffer.catalog.known_files())
    assert world.buffer.records() == []
    assert world.kept().refused == {"sub/a.png"}


def test_everything_at_once(drop_world):
    """Folders moved in whole, copies, hard links, empty files, folders with image names."""
    world: DropWorld = drop_world()
    world.listening()
    ready = world.folder.with_name("ready")
    for number in range(10):
        path = ready / f"{number % 2}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(number))
        world.promise(f"moved/{number % 2}/{number}.png", picture(number))
    ready.rename(world.folder / "moved")
    (world.folder / "folder.png").mkdir()
    world.drop("empty.png", b"")
    world.drop("copy.png", picture(0))
    os.link(world.folder / "copy.png", world.folder / "linked.png")
    world.promise("linked.png", picture(0))
    kept = world.settled()
    assert len(kept.committed) == 10
    assert len(kept.duplicate) == 2
    assert kept.refused == {"empty.png"}
