"""The view Look over HTTP; the test answers in the observer's place (`tests/daemon/test_observer.py` has the real)."""

import io
import re
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from daemon.control.page import look as look_view
from daemon.control.page import look_frames, look_pictures
from daemon.looks.pictures import DIFFERS
from daemon.runtime.activity import Activity, ChildActivity
from storage.looks import store as looks
from storage.looks.store import LookStore, NoLook
from tests.daemon.control.control_world import suggestion
from tests.sections import changed

AGAIN = 'hx-trigger="load delay:1s'
HEIGHT, WIDTH = 29, 48
"""Size of the frames without padding: images of 24x40 in frames of 32x48."""


@pytest.fixture
def view(page, drop, write_image, layout, monkeypatch):
    """Three frames, the observer on, and nobody waits for it."""
    for number in range(3):
        write_image(drop / f"{number}.png", number)
    page.bench.until(lambda: page.bench.counts.frames == 3)
    page.context.in_force.now = changed(page.context.in_force.now, observe={"enabled": True})
    monkeypatch.setattr(look_view, "WAIT_SECONDS", 0.0)
    monkeypatch.setattr(look_pictures, "PATIENCE", 0.0)
    page.store = LookStore(layout.looks)

    def answer(png: bytes | None = None) -> list[int]:
        """Answer every look that waits by labels of the version's own, or as given; return the versions."""
        answered = []
        while (look := page.store.waiting()) is not None:
            page.store.answer(look, labels(look.version) if png is None else png)
            answered.append(look.version)
        return sorted(answered)

    page.answer = answer
    page.show = lambda address="/look": page.client.get(address).text
    return page


def labels(version: int) -> bytes:
    """Class 0, and in the upper rows, as many as the version's number, whatever the one class list has."""
    found = np.zeros((HEIGHT, WIDTH), np.uint8)
    file = io.BytesIO()
    found[:version] = 1
    Image.fromarray(found).save(file, "PNG")
    return file.getvalue()


def picture(client, address: str, mode: str) -> np.ndarray:
    answer = client.get(address.replace("&amp;", "&"))
    assert answer.status_code == 200, answer.text
    assert "immutable" in answer.headers["Cache-Control"] and answer.headers["X-Content-Type-Options"] == "nosniff"
    with Image.open(io.BytesIO(answer.content)) as image:
        return np.array(image.convert(mode))


def addresses(text: str, kind: str) -> list[str]:
    return re.findall(rf'src="(/look/{kind}/[^"]+)"', text)


def selected(text: str) -> list[str]:
    return re.findall(r'<option value="(\d+)" selected>', text)


def test_previous_serving_and_candidate_stand_side_by_side_on_the_newest_frame(view, layout, add_version):
    suggestion(layout, add_version(3, promote=False))
    text = view.show()
    assert text.count('data-state="waiting"') == 3 and AGAIN in text, "the page asks again"
    assert view.answer() == [2, 3, 4]
    text = view.show()
    assert selected(text) == ["2", "3", "4"] and AGAIN not in text
    assert re.findall(r"<figcaption><a[^>]*>([^<]*)<", text) == [
        "version 2 (previous)", "version 3 (serving)", "version 4 (candidate)",
    ]  # fmt: skip
    masks = addresses(text, "mask")
    assert [address.split("?")[0] for address in masks] == [f"/look/mask/3/{version}.png" for version in (2, 3, 4)]
    mask = picture(view.client, masks[0], "RGB")
    assert mask.shape == (HEIGHT, WIDTH, 3) and mask[-1, -1].tolist() == [1, 2, 3], "the colour of the class list"
    frame = picture(view.client, addresses(text, "frame")[0], "RGB")
    assert frame.shape == (HEIGHT, WIDTH, 3), "without padding"
    assert len(addresses(text, "small")) == 3
    assert f"Version 2 differs on {100 / HEIGHT:.1f} % of the pixels" in text
    first, second = addresses(text, "difference")
    assert "/look/difference/3/3/2.png" in first and "/look/difference/3/3/4.png" in second
    drawn = picture(view.client, first, "RGBA")
    assert (drawn[2] == (*DIFFERS, 255)).all() and not drawn[:2, :, 3].any() and not drawn[3:, :, 3].any()
    assert re.findall(r"<span>road</span></th><td>([^<]*)<", text) == [f"{100 - 200 / HEIGHT:.1f} %"]


def test_any_version_on_any_frame_by_an_address_that_can_be_shared(view):
    assert 'href="/look?version=3&amp;version=2"' in view.show("/versions/2"), "each version leads here"
    address = "/look?frame=2&version=1&version=&version=3&colors=distinct"
    view.show(address)
    assert view.answer() == [1, 3]
    text = view.show(address)
    assert selected(text) == ["1", "3"]
    masks = addresses(text, "mask")
    assert [mask.split("?")[0] for mask in masks] == ["/look/mask/2/1.png", "/look/mask/2/3.png"]
    assert picture(view.client, masks[0], "RGB")[-1, -1].tolist() == [0xE6, 0x9F, 0x00], "Okabe and Ito's first"
    assert "Frame 1, older" in text and "Frame 3, newer" in text
    assert "/look?frame=3&amp;version=1&amp;version=3&amp;colors=distinct" in text
    assert "style=" not in text and 'fill="#e69f00"' in text


def test_pages_of_frames_lead_to_each_other(view, monkeypatch):
    monkeypatch.setattr(look_view, "SHOWN", 2)
    monkeypatch.setattr(look_frames, "SHOWN", 2)
    newest, oldest = view.show(), view.show("/look?skip=2")
    assert [len(addresses(text, "small")) for text in (newest, oldest)] == [2, 1]
    assert "skip=2" in newest and ">Newer<" not in newest and ">Newer<" in oldest and ">Older<" not in oldest
    live = view.client.get("/look/frames?frame=2&version=1")
    assert live.status_code == 200 and addresses(live.text, "small") == addresses(newest, "small")
    assert "<h1>" not in live.text and re.findall(r'frame=(\d)&amp;version=1" aria-current', live.text) == ["2"]
    assert view.client.get("/look/frames?frame=x").status_code == 422
    assert "fewer frames than that" in view.show("/look?skip=99")


def test_what_is_not_there_is_said_beside_what_is(view):
    for address, words in (
        ("/look?frame=99", "Frame 99 is not in the buffer"),
        ("/look?version=77", "no version 77"),
        ("/look?version=2", "The observer is asked for it"),
    ):
        answer = view.client.get(address)
        assert answer.status_code == 200 and words in answer.text, address
        assert len(addresses(answer.text, "small")) == 3, "another frame can be chosen"


def test_an_address_that_means_nothing_is_refused(view):
    for address in ("/look?frame=x", "/look?frame=-1", "/look?version=2%3Cscript%3E"):
        answer = view.client.get(address)
        assert answer.status_code == 422 and "must be numbers" in answer.text and "<script>" not in answer.text


def test_why_there_are_no_labels_is_said_in_their_place(view, registry, monkeypatch):
    view.show("/look?version=2")
    look = view.store.waiting()
    view.store.answer(look, NoLook(state="version_damaged", message="version 2: <b>truncated</b>"))
    text = view.show("/look?version=2")
    assert "version 2: &lt;b&gt;truncated" in text and AGAIN not in text
    assert view.client.get("/look/mask/3/2.png").status_code == 409
    monkeypatch.setattr(looks, "MOST_WAITING", 0)
    text = view.show("/look?version=1")
    assert 'data-state="too_many"' in text and AGAIN in text
    answer = view.client.get("/look/mask/3/1.png")
    assert (answer.status_code, answer.json()["code"]) == (503, "no_picture")
    (registry.folder(1) / "manifest.json").write_text("{")
    assert 'data-state="version_damaged"' in view.show("/look?version=1")


def test_the_observer_is_off_or_does_not_work(view, page):
    page.context.in_force.now = changed(page.context.in_force.now, observe={"enabled": False})
    text = view.show()
    assert "set observe.enabled to on" in text and addresses(text, "frame"), "the frame itself shows"
    assert view.store.waiting() is None and AGAIN not in text
    child = ChildActivity(name="observe", running=False, reason="no memory")
    context = replace(page.context, activity=lambda: Activity(children=[child]))
    assert look_view.observer_problem(context) == "no memory"
    assert look_view.observer_problem(page.context) == ""
    view.store.root.write_text("no folder")
    page.context.in_force.now = changed(page.context.in_force.now, observe={"enabled": True})
    assert "The observer cannot be asked: " in view.show()


def test_where_frames_may_not_be_seen_none_is(view, page):
    page.context.in_force.now = changed(page.context.in_force.now, observe={"advanced": {"looks": False}})
    text = view.show("/look?frame=1")
    assert "observe.advanced.looks is off" in text and "/look/" not in text.replace("/look/frames", "")
    for address in ("/look/frame/1.jpg", "/look/small/1.jpg", "/look/mask/1/1.png", "/look/difference/1/1/2.png"):
        assert view.client.get(address).status_code == 404, address
    assert view.store.waiting() is None


def test_versions_of_other_classes_are_not_compared(view, registry, tmp_path):
    manifest = registry.manifest(3).model_copy(
        update={"classes": ({"name": "sky", "color": (9, 9, 9)}, {"name": "sea", "color": (8, 8, 8)}), "files": {}}
    )
    registry.add(registry.weights_path(3), manifest, by="test")
    view.show("/look?version=3&version=4")
    view.answer()
    text = view.show("/look?version=3&version=4")
    assert "It has another class list" in text and not addresses(text, "difference")


def test_a_damaged_buffer_and_an_empty_one_are_states_of_the_page(view, page, layout):
    assert view.client.get("/look/frame/99.jpg").status_code == 404
    with page.bench.buffer.catalog.transaction() as connection:
        connection.execute("UPDATE frames SET crc32 = 1 WHERE id = 1")
    answer = view.client.get("/look/small/1.jpg")
    assert answer.status_code == 409 and answer.json()["message"].startswith("frame_damaged: ")
    with page.bench.buffer.catalog.transaction() as connection:
        connection.execute("DELETE FROM frames")
    assert "No frame was committed yet" in view.show()
    page.bench.buffer.close()
    layout.catalog.write_bytes(b"not a database, but long enough to be looked at" * 30)
    answer = view.client.get("/look")
    assert answer.status_code == 200 and 'role="status"' in answer.text and "catalog.sqlite" in answer.text
    layout.catalog.unlink()
    assert "No frame was committed yet" in view.show()
