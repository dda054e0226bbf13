"""The views Conditions and Files: what they show, and what their forms change."""

import os
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from storage.gate.conditions import Condition, Conditions, ConditionStore
from tests.daemon.control.control_world import TOKEN

NASTY = "<b>a</b>\n\x1b[31m"
"""A file name on Linux may hold any byte but / and 0."""


@pytest.fixture
def known(page, layout):
    """Two conditions; the stream is in the second, whose golden frame the buffer lost."""

    def condition(number: int, name: str, **more) -> Condition:
        return Condition(
            number=number, name=name, best=number, best_reason="by its evidence", opened=1.0, last_seen=2.0,
            centroids=((float(number), 0.0),), **more,
        )  # fmt: skip

    conditions = Conditions(
        released=1, given=2, current=2, cameras={"east": 2, "west": None}, threshold=0.5,
        conditions=(condition(1, "<i>day"), condition(2, "fog", golden=(7,))),
    )  # fmt: skip
    store = ConditionStore(layout.conditions)
    store.write(conditions)
    return store


def test_conditions_are_listed_with_what_is_best_there(page, known):
    text = page.client.get("/conditions").text
    assert "&lt;i&gt;day" in text and "<i>" not in text and "fog</a> (now)" in text
    assert "In no known condition now: west." in text and "by its evidence" in text
    one = page.client.get("/conditions/2").text
    assert "the buffer lost it" in one and "Distances" in one and "&lt;i&gt;day 1;" in one
    assert page.client.get("/conditions/9").status_code == 404


def test_before_the_first_condition_the_view_says_who_opens_it(page, layout):
    assert "No condition is known yet" in page.client.get("/conditions").text
    layout.conditions.write_text("{")
    answer = page.client.get("/conditions")
    assert answer.status_code == 409 and "cannot be read" in answer.text and "conditions.json" in answer.text


def test_conditions_are_renamed_merged_and_forgotten_with_token_and_reason(page, known):
    def names() -> list[str]:
        return [item.name for item in known.read().conditions]

    assert page.send(path="/rename", number="2", name="mist", token="x").status_code == 401
    assert page.send(path="/rename", number="2", name="mist", reason="").status_code == 422
    assert page.send(path="/rename", number="2", name="<i>day").status_code == 422, "taken"
    assert page.send(path="/rename", number="9", name="mist").status_code == 404
    assert page.send(path="/forget", number="x").status_code == 422
    assert names() == ["<i>day", "fog"]
    answer = page.send(path="/rename", number="2", name="mist", back="/conditions/2")
    assert answer.headers["Location"] == "/conditions/2?done=rename" and names() == ["<i>day", "mist"]
    assert page.send(path="/merge", number="2", into="2").status_code == 409
    assert page.send(path="/merge", number="2", into="1", back="/conditions").status_code == 303
    assert names() == ["<i>day"]
    assert page.send(path="/forget", number="1").status_code == 409, "the only one stays"


@pytest.fixture
def refused(page, drop: Path) -> list[bytes]:
    """Three refused files, two of which have names that are no text, and a good one."""
    made = [b"plain.png", NASTY.replace("/", "").encode() + b".png", b"\xff\xfe.png"]
    for name in made:
        (drop / os.fsdecode(name)).write_bytes(b"rubbish")
    page.bench.until(lambda: sum(page.bench.counts.refused.values()) == len(made))
    return made


def test_refused_files_are_shown_whatever_their_name_is(page, refused, write_image, drop):
    write_image(drop / "good.png", 1)
    page.bench.until(lambda: page.bench.counts.frames == 1)
    text = page.client.get("/files").text
    assert "plain.png" in text and r"&lt;b&gt;a&lt;" in text and r"\x1b[31m" in text and r"\xff\xfe.png" in text
    assert "\x1b" not in text and "<b>a" not in text
    assert "good.png, 40x24" in text and "3 refused" in text
    (code,) = page.bench.counts.refused
    assert f'value="{code}" selected' in page.client.get(f"/files?reason={code}").text
    assert "No file is refused for this reason." in page.client.get("/files?reason=other").text


def sent(page, **fields: str) -> httpx.Response:
    """The answer to a form that asks ingest, which runs meanwhile."""
    with ThreadPoolExecutor() as pool:
        answer = pool.submit(page.client.post, "/retry", data={"token": TOKEN, "reason": "mended"} | fields)
        page.bench.until(answer.done)
        return answer.result()


def test_one_file_or_all_are_retried(page, refused, drop):
    def left() -> int:
        return sum(page.bench.counts.refused.values())

    addresses = re.findall(r'name="path" value="([^"]*)"', page.client.get("/files").text)
    assert len(addresses) == 3
    odd = next(address for address in addresses if "xff" in address)
    (drop / os.fsdecode(refused[2])).unlink()
    answer = sent(page, path=odd, back="/files")
    assert answer.status_code == 303 and left() == 2
    again = sent(page, path=odd)
    assert again.status_code == 409 and "no such file is refused any more" in again.text
    for name in refused[:2]:
        (drop / os.fsdecode(name)).unlink()
    assert sent(page).status_code == 303
    assert left() == 0 and "No file is refused." in page.client.get("/files").text


def test_without_a_buffer_the_view_says_so(page, layout):
    layout.catalog.unlink()
    assert "No file has come yet." in page.client.get("/files").text


def test_many_refused_files_have_pages(page, drop):
    for number in range(60):
        (drop / f"{number:02d}.png").write_bytes(b"rubbish")
    page.bench.until(lambda: sum(page.bench.counts.refused.values()) == 60)
    first, second = page.client.get("/files").text, page.client.get("/files?skip=50").text
    assert first.count('name="path"') == 50 and "/files?skip=50" in first
    assert second.count('name="path"') == 10 and "Older" not in second
