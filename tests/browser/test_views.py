"""Every view in a real browser: no error, nothing wider than a phone, nothing that assistive tools cannot read."""

import pytest
from axe_playwright_python.sync_playwright import Axe

from daemon.control.page.view import NAVIGATION

VIEWS = [address for address, _, _ in NAVIGATION] + ["/versions/2", "/versions/99"]
SERIOUS = ("serious", "critical")


@pytest.mark.parametrize(("width", "scheme"), [(1200, "light"), (400, "dark")])
def test_every_view_is_readable(open_context, width, scheme):
    page = open_context(width, color_scheme=scheme).new_page()
    for view in VIEWS:
        page.goto(view)
        assert page.locator("h1").count() == 1, view
        assert page.evaluate("document.documentElement.scrollWidth") <= width, f"{view} is wider than the window"
        found = Axe().run(page).response["violations"]
        told = [(item["id"], item["nodes"][0]["html"]) for item in found if item["impact"] in SERIOUS]
        assert told == [], view
    open_context.expect_errors("404")  # version 99


def test_the_keyboard_reaches_everything(open_context):
    page = open_context().new_page()
    page.goto("/")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.textContent") == "Roll back":
            break
    page.keyboard.press("Enter")
    assert page.get_by_label("Reason").first.is_visible()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.name") == "to"
