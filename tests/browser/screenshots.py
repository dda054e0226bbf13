"""Write the pictures of the page in docs/images from a running daemon.

python -m tests.browser.screenshots http://127.0.0.1:8008 --frame 56
"""

import argparse
from pathlib import Path

from playwright.sync_api import Page, expect, sync_playwright

from tests.browser.conftest import CHROMIUM

OUT = Path(__file__).parents[2] / "docs" / "images"
SIZE = (1100, 760)


def shoot(page: Page, view: str, name: str) -> None:
    """Write the upper part of one view; labels of Look are waited for."""
    page.goto(view)
    if view.startswith("/look"):
        expect(page.locator("img.mask")).not_to_have_count(0, timeout=60_000)
    page.wait_for_timeout(1500)  # curves are drawn when their points came
    page.screenshot(path=OUT / f"page-{name}.png")


def main() -> None:
    """Write one picture of each view."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("address")
    parser.add_argument("--frame", type=int, required=True, help="frame to look at")
    options = parser.parse_args()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(base_url=options.address, viewport={"width": SIZE[0], "height": SIZE[1]})
        shoot(page, "/", "now")
        shoot(page, f"/look?frame={options.frame}", "look")
        shoot(page, "/versions", "versions")
        browser.close()


if __name__ == "__main__":
    main()
