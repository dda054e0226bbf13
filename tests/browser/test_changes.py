"""What an operator does by clicking, on a real daemon; other windows follow by themselves."""

import signal

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import PATIENCE
from tests.daemon.running import Running

expect.set_options(timeout=PATIENCE)


def send(page, daemon, title: str, button: str, token: str | None = None) -> None:
    form = page.locator("details.form", has=page.get_by_text(title, exact=True))
    form.locator("summary").click()
    form.get_by_label("Reason").fill("poles vanish <b>at night</b>")
    form.get_by_label("Control token").fill(daemon.token if token is None else token)
    form.get_by_role("button", name=button).click()


def test_rollback_and_promotion_by_clicking_show_in_another_window(open_context, daemon):
    context = open_context()
    page, other = context.new_page(), context.new_page()
    other.goto("/")
    expect(other.locator("a.big")).to_have_text("version 3")
    page.goto("/")
    send(page, daemon, "Roll back", "Roll back from version 3")
    expect(page.get_by_text("Rolled back.")).to_be_visible()
    expect(other.locator("a.big")).to_have_text("version 2")
    assert daemon.registry.serving().version == 2
    last = daemon.registry.history()[-1]
    assert (last.event, last.by, last.reason) == ("rolled_back", "operator", "poles vanish <b>at night</b>")

    other.goto("/versions")
    page.goto("/versions/3")
    send(page, daemon, "Serve version 3", "Replace version 2 by version 3")
    expect(page.get_by_text("Promoted.")).to_be_visible()
    expect(other.get_by_role("cell", name="promoted: version 3 instead of 2")).to_have_count(2)
    assert daemon.registry.serving().version == 3
    other.locator("svg a").last.focus()
    other.keyboard.press("Enter")
    expect(other.get_by_role("heading", level=1)).to_have_text("Version 3")


def test_a_wrong_token_changes_nothing_and_says_so(open_context, daemon):
    page = open_context().new_page()
    page.goto("/")
    send(page, daemon, "Roll back", "Roll back from version 3", token="guess")
    expect(page.get_by_role("alert")).to_contain_text("wrong control token")
    assert daemon.registry.serving().version == 3
    open_context.expect_errors("401")


def test_forms_work_without_scripts(open_context, daemon):
    page = open_context(java_script_enabled=False).new_page()
    page.goto("/versions/2")
    send(page, daemon, "Pin", "Pin version 2")
    expect(page.get_by_text("Pinned.")).to_be_visible()
    assert daemon.registry.pins() == [2]
    send(page, daemon, "Unpin", "Unpin version 2")
    expect(page.get_by_text("Unpinned.")).to_be_visible()


def test_a_window_stays_through_a_restart(open_context, daemon):
    page = open_context().new_page()
    page.goto("/")
    lost = page.get_by_text("No answer from the daemon")
    expect(page.locator("#link")).to_have_text("")
    daemon.running.stop(signal.SIGKILL)
    expect(lost).to_be_visible()
    before = page.get_by_text("As of").text_content()
    daemon.running = Running(daemon.config, daemon.layout)
    expect(lost).not_to_be_visible()
    expect(page.get_by_text("As of")).not_to_have_text(before)
    open_context.expect_errors("net::ERR_", "Failed to fetch")  # of htmx, when a request was under way


@pytest.mark.nightly
def test_hidden_windows_leave_the_connections_of_the_browser_to_others(open_context, daemon):
    context = open_context()
    context.add_init_script("Object.defineProperty(document, 'hidden', {get: () => !window.shown})")
    for _ in range(7):  # a browser has six connections to one server
        page = context.new_page()
        page.goto("/")
    expect(page.locator("a.big")).to_have_text("version 3")
    send(page, daemon, "Roll back", "Roll back from version 3")
    expect(page.get_by_text("Rolled back.")).to_be_visible()
    other = context.pages[0]
    expect(other.locator("a.big")).to_have_text("version 3")
    other.evaluate("window.shown = true; document.dispatchEvent(new Event('visibilitychange'))")
    expect(other.locator("a.big")).to_have_text("version 2")
    send(page, daemon, "Serve another version", "Replace version 2")
    expect(other.locator("a.big")).to_have_text("version 3")
