"""Looks on disk: asked, answered, refused for a while; bounded, and of no value after a kill."""

import os
import time

import pytest

from storage.looks import store as looks
from storage.looks.store import Look, LookStore, NoLook

LOOK = Look(frame=42, crc32=0x1A2B, version=7, digest="0123456789ab")


def numbered(number: int) -> Look:
    return Look(number, number, 1, "0" * 12)


@pytest.fixture
def store(tmp_path) -> LookStore:
    return LookStore(tmp_path / "looks")


def aged(path, seconds: float) -> None:
    at = time.time() - seconds
    os.utime(path, (at, at))


def test_a_look_is_asked_for_and_answered(store):
    assert store.waiting() is None and store.found(LOOK) is None, "nothing was ever asked"
    assert store.ask(LOOK) and store.ask(LOOK)
    assert LookStore(store.root).waiting() == LOOK and store.found(LOOK) is None
    store.answer(LOOK, b"png")
    assert store.waiting() is None and store.found(LOOK) == b"png"
    for other in (Look(42, 0x1A2C, 7, LOOK.digest), Look(42, 0x1A2B, 7, "f" * 12)):
        assert store.found(other) is None, "another frame or version of the same number"
    store.clear()
    assert store.found(LOOK) is None
    store.clear()


def test_the_one_that_waits_longest_comes_first_and_nobody_waits_for_ever(store):
    for number in (1, 2, 3):
        store.ask(numbered(number))
        aged(store.root / f"{numbered(number).name}.ask", 20 * number)
    (store.root / "notes.ask").touch()
    (store.root / "000001-00000001-1-short.ask").touch()
    assert store.waiting() == numbered(1), "2 and 3 were given up"
    assert len(list(store.root.glob("0*-*.ask"))) == 2
    store.ask(numbered(2))
    assert store.waiting() == numbered(1)


def test_a_flood_is_refused_but_who_waits_may_wait_on(store, monkeypatch):
    monkeypatch.setattr(looks, "MOST_WAITING", 2)
    assert [store.ask(numbered(number)) for number in (1, 2, 3, 1)] == [True, True, False, True]


def test_a_refusal_holds_for_a_while_and_a_damaged_one_is_none(store):
    no = NoLook(state="version_damaged", message="version 7 is damaged")
    store.ask(LOOK)
    store.answer(LOOK, no)
    path = store.root / f"{LOOK.name}.json"
    assert store.found(LOOK) == no and store.waiting() is None
    aged(path, looks.REFUSED_SECONDS + 1)
    assert store.found(LOOK) is None
    path.write_text("{")
    assert store.found(LOOK) is None
    path.write_text('{"state": "of a newer mfmd", "message": ""}')
    assert store.found(LOOK) is None


@pytest.mark.parametrize(("limit", "most"), [("KEPT", 2), ("KEPT_BYTES", 11)])
def test_the_oldest_go_first(store, monkeypatch, limit, most):
    monkeypatch.setattr(looks, limit, most)
    for number in range(4):
        store.ask(numbered(number))
        store.answer(numbered(number), b"12345")
        aged(store.root / f"{numbered(number).name}.png", 10 - number)
    assert [number for number in range(4) if store.found(numbered(number))] == [2, 3]
