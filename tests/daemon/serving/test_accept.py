"""What Accept asks for: media ranges, weights, parameters, and headers that mean nothing."""

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.serving.api.answers import AnswerFormat, choose_format
from daemon.serving.errors import ApiError
from tests.daemon.serving.serving_world import Served, image_bytes, mask_of

BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,image/apng,*/*;q=0.8"


@pytest.mark.parametrize(
    ("accept", "chosen"),
    [
        ("", "index"),
        ("*/*", "index"),
        ("image/*", "index"),
        ("image/png", "index"),
        ("IMAGE/PNG", "index"),
        (BROWSER, "index"),
        ("application/json", "json"),
        ("application/*", "json"),
        ("application/json, image/png", "index"),
        ("application/json, image/png;q=0.9", "json"),
        ("image/png;q=0.2, application/json;q=0.3", "json"),
        ("image/png;format=color", "color"),
        ('image/png; Format="overlay"', "overlay"),
        ("image/png;format=color;q=0.5, image/png;format=overlay;q=0.6", "overlay"),
        ("image/png, image/png;format=index;q=0", "color"),
        ("*/*, image/png;q=0", "json"),
        ("*/*;q=0.1, application/json;q=0", "index"),
        ("image/jpeg, image/*;q=0.5", "index"),
        ("nonsense, application/json", "json"),
        ("image/png;q=2, application/json;q=0.1", "json"),
        ("image/png;q=nan, application/json;q=0.1", "json"),
        ("application/json; charset=utf-8", "json"),
        ("image/png;level=1;q=0.5, application/json;charset=utf-8;q=0.4", "index"),
    ],
)
def test_accept_decides(accept: str, chosen: str) -> None:
    assert choose_format(None, accept) == AnswerFormat(chosen)


@pytest.mark.parametrize(
    "accept", ["image/jpeg", "text/html", "image/png;q=0", "*/*;q=0", "nonsense", "image/png;format=gif", "*/png", ";"]
)
def test_nothing_that_is_wanted_is_406_with_what_there_is(accept: str) -> None:
    with pytest.raises(ApiError) as refused:
        choose_format(None, accept)
    assert (refused.value.status, refused.value.code) == (406, "not_acceptable")
    assert "image/png;format=overlay" in refused.value.message and "application/json" in refused.value.message


@given(st.text(max_size=60) | st.text(alphabet='*/;=q0.19,image png"', max_size=60))
def test_any_header_is_understood_or_refused(accept: str) -> None:
    try:
        assert choose_format(None, accept) in AnswerFormat
    except ApiError as error:
        assert error.status == 406


def test_the_query_goes_before_accept() -> None:
    assert choose_format("json", "image/png") is AnswerFormat.JSON


def test_accept_over_http(shared: Served) -> None:
    def ask(accept: str) -> httpx.Response:
        return shared.client.post("/v1/segment", content=image_bytes(), headers={"Accept": accept})

    colour = ask("image/png;format=color, image/png;q=0.1")
    assert colour.headers["content-type"] == "image/png" and mask_of(colour).ndim == 3
    summary = ask("application/json;q=0.9, image/png;q=0.1")
    assert summary.headers["content-type"] == "application/json"
    assert sum(row["share"] for row in summary.json()["classes"]) == pytest.approx(1.0)
    two_lines = [("Accept", "text/html"), ("Accept", "application/json")]
    answer = shared.client.post("/v1/segment", content=image_bytes(), headers=two_lines)
    assert answer.headers["content-type"] == "application/json"
    refused = ask("image/jpeg")
    assert (refused.status_code, refused.json()["code"]) == (406, "not_acceptable")
