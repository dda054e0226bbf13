"""When an image was taken, and by which camera."""

import time
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image
from pydantic import ValidationError

from configs.watch import WatchSettings
from daemon.ingest.decode import capture_time, exif_time, name_time, source_label
from storage.buffer.catalog_records import FileFact
from tests.sections import section

FORMS = WatchSettings(folder=Path("drop")).advanced.capture_name
MTIME = datetime(2020, 5, 6, 7, 8, 9, tzinfo=UTC).timestamp()
LOCAL = datetime(2023, 4, 5, 6, 7, 8).timestamp()
TAKEN, OFFSET, FRACTION = 36867, 36881, 37521


def fact(path: str, mtime: float = MTIME) -> FileFact:
    return FileFact(path, 1, int(mtime * 1e9))


def watch(**values: object) -> WatchSettings:
    return section(WatchSettings, folder="drop", **values)


@pytest.mark.parametrize(
    ("tags", "found"),
    [
        ({TAKEN: "2023:04:05 06:07:08"}, LOCAL),
        ({TAKEN: "2023:04:05 06:07:08\0"}, LOCAL),
        ({TAKEN: "2023:04:05 06:07:08", FRACTION: "25"}, LOCAL + 0.25),
        ({TAKEN: "2023:04:05 06:07:08", FRACTION: "x"}, LOCAL),
        (
            {TAKEN: "2023:04:05 06:07:08", OFFSET: "+02:00", FRACTION: "5"},
            datetime(2023, 4, 5, 6, 7, 8, tzinfo=timezone(timedelta(hours=2))).timestamp() + 0.5,
        ),
        ({TAKEN: "2023:04:05 06:07:08", OFFSET: "   :  "}, LOCAL),
        ({TAKEN: "0000:00:00 00:00:00"}, None),
        ({TAKEN: "    :  :     :  :  "}, None),
        ({TAKEN: b"2023:04:05"}, None),
        ({TAKEN: "0000:00:00 00:00:00", 36868: "2023:04:05 06:07:08"}, LOCAL),
        ({}, None),
    ],
)
def test_exif(tags: dict[int, object], found: float | None):
    assert exif_time(tags) == found


@pytest.mark.parametrize(
    ("name", "moment"),
    [
        ("cam/IMG_20230405_060708.jpg", LOCAL),
        ("PXL_20230405_060708123.jpg", LOCAL),
        ("gate-20230405T060708-3.png", LOCAL),
        ("2023-04-05_06-07-08 copy.png", LOCAL),
        ("20230405060708.jpg", LOCAL),
        ("00001_20230405_060708.jpg", LOCAL),
        ("20230405_060708/frame-17.jpg", None),
        ("99920230405_060708.jpg", None),
        ("20231305_060708.jpg", None),
        ("20230405_060708", LOCAL),
        ("19700101_000000.jpg", None),
        ("1700000000123.jpg", None),
    ],
)
def test_name(name: str, moment: float | None):
    assert name_time(name, FORMS) == moment


def test_a_form_of_ones_own():
    assert name_time("05.04.23 06h07.08.jpg", ("%d.%m.%y %Hh%M.%S",)) == LOCAL
    assert name_time("shot 2023-Apr-05.jpg", ("%Y-%b-%d",)) == datetime(2023, 4, 5).timestamp()


@pytest.mark.parametrize("form", ["%H%M%S", "%Q", "frame"])
def test_a_form_that_never_finds_a_time_is_no_setting(form: str):
    with pytest.raises(ValidationError, match="does not read back"):
        watch(capture_name=[form])


def test_the_first_plausible_one_in_the_order_of_the_settings():
    file, exif = fact("20230405_060708.jpg"), {TAKEN: "2022:01:01 00:00:00", OFFSET: "+00:00"}
    taken = datetime(2022, 1, 1, tzinfo=UTC).timestamp()
    assert capture_time(watch(), file, exif) == taken
    assert capture_time(watch(), file, {}) == LOCAL
    assert capture_time(watch(), fact("a.jpg"), {}) == MTIME
    assert capture_time(watch(capture_time=["name", "exif"]), file, exif) == LOCAL
    assert capture_time(watch(capture_time=["exif"]), file, {}) == MTIME
    assert capture_time(watch(capture_time=["mtime"]), file, exif) == MTIME


@pytest.mark.parametrize("absurd", ["1980:01:01 00:00:00", "2100:01:01 00:00:00", "9999:12:31 23:59:59"])
def test_absurd_times_are_passed_over(absurd: str):
    assert capture_time(watch(), fact("20230405_060708.jpg"), {TAKEN: absurd}) == LOCAL
    assert capture_time(watch(), fact("29990405_060708.jpg"), {TAKEN: absurd}) == MTIME


def test_a_clock_that_is_a_little_ahead_is_believed_and_a_file_of_1970_is_of_now():
    soon = datetime.fromtimestamp(time.time() + 3600, UTC)
    tags = {TAKEN: soon.strftime("%Y:%m:%d %H:%M:%S"), OFFSET: "+00:00"}
    assert capture_time(watch(), fact("a.jpg"), tags) == int(soon.timestamp())
    before = time.time()
    assert before <= capture_time(watch(), fact("a.jpg", mtime=12.0), {}) <= time.time()


def test_the_source_is_the_first_sub_folder():
    assert source_label(watch(), fact("north gate/2023/a.jpg")) == "north gate"
    assert source_label(watch(), fact("a.jpg")) == ""
    assert source_label(watch(source_label="none"), fact("north/a.jpg")) == ""


def test_frames_carry_time_source_and_hash(bench, drop, write_image):
    """Through the real ingest, from the tags of a real JPEG."""
    (drop / "north").mkdir()
    exif = Image.Exif()
    exif.get_ifd(ExifTags.IFD.Exif).update({TAKEN: "2023:04:05 06:07:08", FRACTION: "75"})
    pixels = np.random.default_rng(3).integers(0, 256, (24, 40, 3), np.uint8)
    Image.fromarray(pixels).save(drop / "north" / "a.jpg", exif=exif)
    write_image(drop / "b.png", 1)
    write_image(drop / "strip.png", 2, height=2, width=60)
    world = bench(admission={"near_duplicate_bits": 0})
    world.until(lambda: world.counts.frames == 2 and world.counts.refused == {"aspect": 1})
    frames = {record.name: record for record in world.buffer.records()}
    assert (frames["north/a.jpg"].source, frames["north/a.jpg"].captured_at) == ("north", LOCAL + 0.75)
    mtime = pytest.approx((drop / "b.png").stat().st_mtime, abs=1e-5)
    assert (frames["b.png"].source, frames["b.png"].captured_at) == ("", mtime)
    assert all(len(record.phash) == 16 for record in frames.values())
    assert frames["b.png"].phash != frames["north/a.jpg"].phash
