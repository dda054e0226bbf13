"""The view Look in a browser: pictures load, sliders move all of them, the pointer names the class."""

import io
import time

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import expect

from storage.buffer.catalog import Catalog
from storage.looks.store import Look, LookStore
from tests.browser.conftest import PATIENCE
from tests.browser.test_views import SERIOUS

expect.set_options(timeout=PATIENCE)


@pytest.fixture(scope="module")
def looked(daemon) -> None:
    """One frame, and the looks of three versions at it as the observer writes them."""
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (24, 36, 3), np.uint8)).save(daemon.drop / "a.png")
    catalog = Catalog.open(daemon.layout.catalog, writable=False)
    (record,) = daemon.running.wait(lambda: catalog.newest(1), "the frame")
    catalog.close()
    for version in (1, 2, 3):
        labels, file = np.zeros((record.valid_height, record.valid_width), np.uint8), io.BytesIO()
        labels[: 4 * version] = 1
        Image.fromarray(labels).save(file, "PNG")
        store = LookStore(daemon.layout.looks)
        look = Look.of(record, daemon.registry.manifest(version))
        store.ask(look)
        store.answer(look, file.getvalue())


def until(page, expression: str) -> None:
    """Wait; the page's Content-Security-Policy forbids what `wait_for_function` does."""
    end = time.monotonic() + PATIENCE / 1000
    while not page.evaluate(expression):
        assert time.monotonic() < end, expression
        page.wait_for_timeout(20)


@pytest.mark.usefixtures("looked")
@pytest.mark.parametrize(("width", "scheme"), [pytest.param(1200, "dark", marks=pytest.mark.nightly), (400, "light")])
def test_pictures_show_and_nothing_is_wider_than_the_window(open_context, width, scheme):
    page = open_context(width, color_scheme=scheme).new_page()
    page.goto("/look?frame=1&version=1&version=2&version=3")
    expect(page.locator(".stack")).to_have_count(5)
    until(page, "[...document.images].every((image) => image.loading == 'lazy' || image.naturalWidth > 0)")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    found = Axe().run(page).response["violations"]
    assert [item["id"] for item in found if item["impact"] in SERIOUS] == []


@pytest.mark.usefixtures("looked")
def test_sliders_move_all_pictures_and_the_pointer_names_the_class(open_context):
    page = open_context().new_page()
    page.goto("/look?frame=1&version=2&version=3")
    opacity, zoom = page.get_by_label("Opacity of the colours"), page.get_by_label("Zoom")
    opacity.focus()
    page.keyboard.press("End")
    assert page.locator(".overlay").first.evaluate("(item) => getComputedStyle(item).opacity") == "1"
    page.locator(".mask").first.hover()
    expect(page.locator("#under")).to_have_text("road")
    zoom.focus()
    page.keyboard.press("End")
    widths = page.locator(".stack").evaluate_all("(all) => all.map((item) => item.scrollWidth / item.clientWidth)")
    assert [round(width) for width in widths] == [8, 8, 8]
    page.locator(".stack").first.evaluate("(item) => item.scrollTo(0, 0)")
    tops = "[...document.querySelectorAll('.stack')].every((item) => item.scrollTop == 0 && item.scrollLeft == 0)"
    until(page, tops)


@pytest.mark.usefixtures("looked")
def test_new_frames_come_into_the_choice_by_themselves(open_context, daemon):
    page = open_context().new_page()
    page.goto("/look")
    expect(page.locator(".frames li")).to_have_count(1)
    Image.fromarray(np.random.default_rng(2).integers(0, 256, (24, 36, 3), np.uint8)).save(daemon.drop / "b.png")
    expect(page.locator(".frames li")).to_have_count(2)
    page.get_by_role("link", name="frame 2").click()
    expect(page.get_by_text("Frame 2, b.png")).to_be_visible()
