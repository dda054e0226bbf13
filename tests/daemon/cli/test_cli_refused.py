"""`mfmd refused`: the list for people and programs, and another chance, with the daemon down."""

import json
import os

import pytest

from storage.buffer.catalog import Catalog
from storage.buffer.catalog_records import FileFact
from storage.layout import StateLayout


@pytest.fixture
def refused(settings):
    """Two refused files, the truncated one newer and in the drop folder."""
    layout = StateLayout(settings.state)
    layout.create()
    catalog = Catalog.open(layout.catalog, writable=True)
    catalog.note(FileFact("cam/notes.txt", 3, 4), "refused", "not_an_image", "not an image", "d" * 64)
    catalog.note(FileFact("night\n1.png", 1, 2), "refused", "truncated", "cut off", None)
    yield catalog
    catalog.close()


def test_the_list_for_people(mfmd, refused):
    answer = mfmd("refused", "list")
    assert answer.code == 0
    lines = answer.out.splitlines()
    assert len(lines) == 3 and "truncated" in lines[1] and r"night\n1.png" in lines[1] and "cut off" in lines[1]
    assert "cam/notes.txt" in lines[2]
    assert len(mfmd("refused", "list", "--limit", 1).out.splitlines()) == 2


def test_the_list_for_programs(mfmd, refused):
    (entry,) = json.loads(mfmd("refused", "list", "--json", "--reason", "not_an_image").out)
    assert entry | {"refused_at": ""} == {
        "file": "cam/notes.txt", "reason": "not_an_image", "detail": "not an image", "refused_at": "",
        "digest": "d" * 64, "bytes": 3, "mtime_ns": 4,
    }  # fmt: skip
    assert entry["refused_at"].endswith("+00:00")
    assert json.loads(mfmd("refused", "list", "--json", "--reason", "empty").out) == []
    assert mfmd("refused", "list", "--reason", "empty").out == "No file is refused.\n"


def test_retry_of_a_file_a_reason_or_all(mfmd, refused):
    answer = mfmd("refused", "retry", "cam/notes.txt", "other.png")
    assert (
        answer.code == 1 and "1 files are queued for a retry" in answer.out and "other.png: not refused" in answer.err
    )
    assert refused.counts().refused == {"truncated": 1}
    answer = mfmd("refused", "retry", "--reason", "empty", "--json")
    assert json.loads(answer.out) == {"retried": [], "not_refused": []}
    answer = mfmd("refused", "retry", "--all", "--json")
    assert json.loads(answer.out) == {"retried": ["night\n1.png"], "not_refused": []}
    assert refused.counts().refused == {}


def test_names_and_reasons_of_bytes_that_are_not_utf8_are_not_refused_ones(mfmd, refused):
    odd = os.fsdecode(b"caf\xe9.png")
    assert mfmd("refused", "list", "--reason", odd).out == "No file is refused.\n"
    for asked in ([odd], [odd, "--reason", odd]):
        answer = mfmd("refused", "retry", *asked, "--json")
        assert json.loads(answer.out) == {"retried": [], "not_refused": [odd]}
    assert sum(refused.counts().refused.values()) == 2


def test_retry_of_nothing_is_a_mistake(mfmd, refused):
    assert mfmd("refused", "retry").code == 2
    assert sum(refused.counts().refused.values()) == 2


def test_without_a_buffer_both_say_so_and_make_none(mfmd, settings):
    for command in ("list", "retry"):
        answer = mfmd("refused", command, *(["--all"] if command == "retry" else []))
        assert answer.code == 1 and "no frame buffer yet" in answer.err
    assert not settings.state.exists()


def test_retry_while_something_else_holds_the_state_directory(mfmd, refused, settings):
    with StateLayout(settings.state).lock():
        answer = mfmd("refused", "retry", "--all")
    assert answer.code == 1 and "error[control_failed]" in answer.err
    assert sum(refused.counts().refused.values()) == 2
