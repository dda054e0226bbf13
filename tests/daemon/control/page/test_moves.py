"""Forms of the operator's page: what it shows is escaped, and only somebody with the token moves anything."""

import re

import pytest

from daemon.control.page.forms import MOST_FORM_BYTES
from storage.registry.manifest import HistoryEvent
from tests.daemon.control.control_world import TOKEN, suggestion

NASTY = "<script>alert('x')</script> & \"quotes\""


def serving(registry) -> int:
    return registry.serving().version


def test_it_shows_what_serves_and_what_happened(page, registry):
    answer = page.client.get("/")
    assert answer.status_code == 200 and answer.headers["Content-Type"].startswith("text/html"), answer.text
    text = answer.text
    assert "version 3</a>, pretrain: test" in text and "Roll back from version 3" in text
    assert "the daemon is not running" in text, "what needs attention"
    assert "No round yet." in text
    text = page.client.get("/versions").text
    assert "added: version 3" in text and "promoted: version 3 instead of 2" in text


def test_it_says_which_versions_nobody_should_go_back_to_blindly(page, registry, add_version):
    for event in ("rejected", "inconclusive"):
        candidate = add_version(3, promote=False)
        registry.record(HistoryEvent(at=1.0, event=event, version=candidate, previous=3, by="gate", reason="odd"))
    registry.set_shadow(add_version(3, promote=False), by="operator", reason="look")
    page.send(to="1")
    choices = re.findall(r"<option[^>]*>([^<]*)</option>", page.client.get("/").text)
    assert choices == [
        "the version that served before",
        "version 6 (never served)",
        "version 5 (never served, inconclusive)",
        "version 4 (never served, rejected)",
        "version 3 (rolled back)",
        "version 2",
    ]
    page.send(path="/promote", serving="1", to="4", reason="the gate is wrong")
    assert serving(registry) == 4
    page.send(serving="4", reason="it was not")
    assert "version 4 (rolled back, rejected)" in page.client.get("/").text


@pytest.mark.parametrize("damaged", [False, True])
def test_a_pause_stands_at_the_top_and_ends_by_its_form(page, layout, damaged):
    assert 'action="/pause"' in page.client.get("/").text
    assert page.send(path="/pause", reason=NASTY).headers["Location"] == "/?done=pause"
    if damaged:
        layout.pause.write_text("{" + NASTY)
    for path in ("/", "/now"):
        text = page.client.get(path).text
        assert text.index("Paused since") < text.index("Serving</h2>") and NASTY not in text
    text = page.client.get("/").text
    assert 'action="/resume"' in text and 'action="/pause"' not in text and (str(layout.pause) in text) == damaged
    assert page.send(path="/resume", token="wrong").status_code == 401 and layout.pause.exists()
    assert page.send(path="/resume").headers["Location"] == "/?done=resume"
    assert not layout.pause.exists() and "Paused since" not in page.client.get("/").text


@pytest.mark.parametrize("damage", ["garbage", None])
def test_with_a_damaged_ref_it_says_what_to_do_and_not_that_there_is_no_version(page, registry, damage):
    path = registry.ref_path("serving")
    path.unlink() if damage is None else path.write_text(damage)
    text = page.client.get("/").text
    assert "There is no other version" not in text and "`mfmd promote N`" in text and "<form" not in text
    assert "The serving version is unknown" in text


def test_versions_of_which_none_ever_served_are_told_from_a_damaged_ref(page, layout):
    for name in ("refs/serving", "history.jsonl"):
        (layout.checkpoints / name).unlink()
    text = page.client.get("/").text
    assert "No version serves: `mfmd promote N`" in text and "serving version is unknown" not in text


def test_it_needs_nothing_from_elsewhere(page):
    answer = page.client.get("/")
    assert not re.search(r"(src|href|action)=.(?![/#])|url\(|@import| style=| on\w+=", answer.text)
    assert re.findall(r"<script[^>]*>[^<]+", answer.text) == [], "no script stands in the page"
    policy = answer.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "frame-ancestors 'none'" in policy
    assert answer.headers["Cache-Control"] == "no-store"
    assert TOKEN not in answer.text


def test_what_others_wrote_is_escaped(page, registry):
    registry.record(HistoryEvent(at=1.0, event="rejected", version=None, by=NASTY, reason=NASTY))
    page.send(reason=NASTY)
    assert registry.history()[-1].reason == NASTY
    shown = page.client.get("/versions").text
    for text in (shown, page.send(serving="1", to=NASTY).text, page.send(token=NASTY).text):
        assert "<script>" not in text
    assert "&lt;script&gt;alert(&#39;x&#39;)" in shown


def test_the_form_rolls_back_with_its_reason(page, registry):
    answer = page.send()
    assert (answer.status_code, answer.headers["Location"]) == (303, "/?done=rollback")
    assert serving(registry) == 2
    last = registry.history()[-1]
    assert (last.event, last.version, last.by, last.reason) == ("rolled_back", 2, "operator", "poles vanish")
    assert page.send(serving="2", to="3", reason="it was the camera").status_code == 409, "that is not back"
    assert page.send(path="/promote", serving="2", to="3", reason="it was the camera").status_code == 303
    assert serving(registry) == 3


def test_sent_twice_or_after_somebody_else_it_does_nothing(page, registry):
    assert page.send().status_code == 303
    again = page.send()
    assert again.status_code == 409
    assert "version 2 serves, not version 3; nothing was rolled back" in again.text
    assert serving(registry) == 2


@pytest.mark.parametrize(
    ("changes", "status", "words"),
    [
        ({"token": "wrong"}, 401, "wrong control token"),
        ({"token": ""}, 401, "wrong control token"),
        ({"reason": "  "}, 422, "reason is required"),
        ({"serving": ""}, 422, "must be a number"),
        ({"to": "x"}, 422, "must be a number"),
        ({"to": "9" * 5000}, 422, "must be a number"),
        ({"to": "77"}, 404, "no version 77"),
        ({"to": "3"}, 409, "serves already"),
        ({"reason": "x" * MOST_FORM_BYTES}, 413, "a form of more than"),
        ({"reason": "a\x00b"}, 422, "is not text"),
        ({str(number): "x" for number in range(20)}, 422, "not a form"),
        ({"path": "/promote"}, 422, "must be a number"),
        ({"path": "/promote", "to": "77"}, 404, "no version 77"),
        ({"path": "/promote", "to": "2", "token": "wrong"}, 401, "wrong control token"),
    ],
)
def test_what_cannot_be_done_is_said_on_the_page(page, registry, changes, status, words):
    before = registry.history()
    answer = page.send(**changes)
    title = "Not promoted" if "path" in changes else "Not rolled back"
    assert (answer.status_code, words in answer.text, title in answer.text) == (status, True, True)
    assert serving(registry) == 3 and registry.history() == before


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://["},
        {"Origin": ""},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
def test_a_form_of_another_site_is_refused_even_with_the_token(page, registry, headers):
    answer = page.send(headers=headers)
    assert answer.status_code == 403 and "another site" in answer.text
    assert serving(registry) == 3


def test_the_page_itself_is_no_other_site(page, registry):
    assert page.send(headers={"Origin": page.origin, "Sec-Fetch-Site": "same-origin"}).status_code == 303
    behind_a_proxy = {"Origin": "https://mfmd.example", "Sec-Fetch-Site": "same-origin"}
    assert page.send(headers=behind_a_proxy, path="/promote", serving="2", to="3").status_code == 303
    assert serving(registry) == 3


def test_a_damaged_registry_still_has_a_page(page, registry):
    registry.ref_path("serving").write_text("{")
    answer = page.client.get("/")
    assert answer.status_code == 200 and "not a ref" in answer.text
    assert page.send().status_code == 409


def test_bytes_that_are_no_text_are_refused(page, registry):
    answer = page.client.post("/rollback", content=b"\xff\xfe=1")
    assert answer.status_code == 422 and "not a form" in answer.text


@pytest.mark.parametrize(("path", "end", "now"), [("/approve", "promoted", 4), ("/reject", "rejected", 3)])
def test_a_suggestion_is_decided_on_the_page(page, registry, layout, add_version, path, end, now):
    assert "Approve version" not in page.client.get("/").text
    folder = suggestion(layout, add_version(3, promote=False))
    text = page.client.get("/").text
    assert "Approve version 4" in text and "Reject version 4" in text and "version 4 waits for a decision" in text
    assert page.send(path=path, to="4", token="wrong").status_code == 401
    assert page.send(path=path, to="2").status_code == 409, "it does not wait"
    assert page.send(path=path, to="4", reason=" ").status_code == 422
    assert folder.record().stage == "suggested" and serving(registry) == 3
    assert page.send(path=path, to="4", reason=NASTY).status_code == 303
    assert (folder.record().stage, serving(registry)) == (end, now)
    assert folder.verdict().answer.reason == NASTY and NASTY in registry.history()[-1].reason
    assert page.send(path=path, to="4").status_code == 409


def test_rounds_and_versions_have_views_that_explain_them(page, layout, add_version):
    suggestion(layout, add_version(3, promote=False))
    text = page.client.get("/versions").text
    assert 'href="/rounds/1"' in text and 'href="/versions/4"' in text
    assert "Round 1 suggests version 4" in page.client.get("/rounds/1").text
    assert "Version 3 serves." in page.client.get("/versions/3").text
    for path in ("/versions/99", "/rounds/99"):
        gone = page.client.get(path)
        assert gone.status_code == 404 and "99" in gone.text and "<h1>No view of" in gone.text
    assert page.client.get("/rounds/0").status_code == 422


@pytest.mark.parametrize("back", ["https://evil.example", "//evil.example", "/versions/../x", "/a?b", "javascript:x"])
def test_a_form_leads_back_to_a_view_of_this_page_only(page, registry, back):
    assert page.send(back=back).status_code == 422 and serving(registry) == 3
    answer = page.send(back="/versions/3")
    assert answer.headers["Location"] == "/versions/3?done=rollback"
    assert "Rolled back." in page.client.get(answer.headers["Location"]).text


def test_a_version_is_pinned_and_unpinned_with_a_reason(page, registry):
    assert page.send(path="/pin", to="2").status_code == 303 and registry.pins() == [2]
    assert "pinned" in page.client.get("/versions").text.partition("On disk")[2]
    assert page.send(path="/pin", to="77").status_code == 404
    assert page.send(path="/unpin", to="2", token="x").status_code == 401 and registry.pins() == [2]
    assert page.send(path="/unpin", to="2").status_code == 303 and registry.pins() == []
    assert registry.history()[-1].reason == "poles vanish"


def test_a_round_that_cannot_begin_says_why(page):
    answer = page.send(path="/adapt")
    assert answer.status_code == 409 and "No round begins" in answer.text and "frames" in answer.text
