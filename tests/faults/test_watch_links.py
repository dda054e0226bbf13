"""Folders behind links that are turned to another folder while the daemon runs, as at midnight."""

import pytest

from configs.load import load_settings
from tests.faults.drop_world import picture


def turn(link, target):
    """Point a link to another folder in one step."""
    new = link.with_name("turning")
    new.symlink_to(target)
    new.replace(link)


def test_a_drop_folder_behind_a_link_is_followed_to_the_next_day_and_back(drop_world, tmp_path):
    for day in ("day1", "day2"):
        (tmp_path / day).mkdir()
    (tmp_path / "drop").symlink_to("day1")
    world = drop_world(advanced={"rescan_seconds": 600.0})
    world.listening()
    world.drop("a.png", picture(1))
    world.settled_without_timer()
    for number, day in ((2, "day2"), (3, "day1"), (4, "day2")):
        turn(tmp_path / "drop", day)
        world.drop(f"{number}.png", picture(number))
        world.drop("same.png", picture(10 + number))
        world.until(lambda number=number: world.buffer.catalog.counts().frames == 2 * number - 1)
    world.dropped.clear()


def test_nothing_is_taken_while_the_link_leads_to_a_folder_of_another_setting(drop_world, tmp_path):
    for name in ("day1", "done"):
        (tmp_path / name).mkdir()
    (tmp_path / "drop").symlink_to("day1")
    world = drop_world(after_commit="move", done_folder=tmp_path / "done")
    world.drop("a.png", picture(1))
    world.until(lambda: (tmp_path / "done/a.png").exists())
    turn(tmp_path / "drop", "done")
    world.until(lambda: world.ingest.activity[0].state == "overlapping")
    assert "watch.done_folder" in world.ingest.activity[0].detail
    (tmp_path / "done/b.png").write_bytes(picture(2))
    turn(tmp_path / "drop", "day1")
    world.drop("c.png", picture(3))
    world.until(lambda: (tmp_path / "done/c.png").exists())
    assert [record.name for record in world.buffer.records()] == ["a.png", "c.png"]
    world.dropped.clear()


def test_paths_of_the_configuration_keep_their_links_but_for_the_state(tmp_path):
    for name in ("real/state", "real/day1", "real/masks"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "current").symlink_to("real/day1")
    file = tmp_path / "mfmd.yaml"
    file.write_text(
        "classes: demo\nstate: link/state\nwatch: {folder: current, quarantine: current/../q}\n"
        "masks: {folder: ./link//masks}\n"
    )
    settings = load_settings(file)
    assert settings.watch.folder == tmp_path / "current"
    assert settings.watch.quarantine == tmp_path / "real/q", "as the system reads it, not as a text"
    assert settings.masks.folder == tmp_path / "link/masks"
    assert settings.state == tmp_path / "real/state", "its database is open: it stays where it was at the start"


@pytest.mark.parametrize("setting", ["done_folder", "quarantine"])
def test_nothing_moves_and_nothing_is_taken_while_another_link_leads_into_the_drop_folder(
    drop_world, tmp_path, setting
):
    for name in ("drop/own", "side"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "link").symlink_to("side")
    refused = setting == "quarantine"
    watch = {} if refused else {"after_commit": "move"}
    world = drop_world(**watch, **{setting: tmp_path / "link"})
    content = b"no image" if refused else picture(1)
    world.drop("a.png", content)
    world.until(lambda: (tmp_path / "side/a.png").exists())
    turn(tmp_path / "link", "drop/own")
    world.drop("b.png", b"none either" if refused else picture(2))
    catalog = world.buffer.catalog
    world.until(lambda: (len(catalog.refused(-1)) if refused else catalog.counts().frames) == 2)
    assert (tmp_path / "drop/b.png").exists() and not [*(tmp_path / "drop/own").iterdir()]
    world.ingest.check_folders()
    world.until(lambda: world.ingest.activity[0].state == "overlapping")
    assert f"watch.{setting}" in world.ingest.activity[0].detail
    turn(tmp_path / "link", "side")
    world.drop("c.png", b"nor this" if refused else picture(3))
    world.until(lambda: (tmp_path / "side/c.png").exists())
    assert world.ingest.activity[0].state == "watching"
    world.dropped.clear()
