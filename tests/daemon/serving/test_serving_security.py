"""The inference plane's token and TLS: nothing but health and metrics is open, and `status` finds its way in."""

import http.client
from pathlib import Path

import httpx
import pytest

from configs.errors import ConfigError
from daemon.serving.middleware import OPEN
from daemon.serving.server import serve
from daemon.status.collect import collect_status
from tests.daemon.certificates import self_signed
from tests.daemon.serving.serving_world import World, image_bytes, running, wait_until

TOKEN = "correct horse"


def test_every_request_but_health_and_metrics_needs_the_token(world: World) -> None:
    world.add(1)
    with running(world.settings(token=TOKEN), token=TOKEN) as served:
        served.wait_for(1)
        paths = served.client.get("/openapi.json").json()["paths"]
        asked = [(method, path) for path in paths for method in paths[path]]
        asked += [("get", "/openapi.json"), ("get", "/no/such/path"), ("post", "/healthz/"), ("get", "//healthz")]
        guarded = [(method, path) for method, path in asked if path not in OPEN]
        assert len(guarded) > 8
        with httpx.Client(base_url=served.client.base_url, timeout=30) as stranger:
            for path in OPEN:
                assert stranger.get(path).status_code == 200, path
            for method, path in guarded:
                answer = stranger.request(method, path)
                assert (answer.status_code, answer.json()["code"]) == (401, "unauthorized"), (method, path)
                assert answer.headers["WWW-Authenticate"] == "Bearer"
            assert stranger.post("/v2/models/mfmd/infer", content=b"{}").json()["error"]
            for given in (
                "Bearer wrong",
                f"Basic {TOKEN}",
                "Bearer",
                f"Bearer {TOKEN}x",
                f"Bearer {TOKEN[:-1]}",
                TOKEN,
            ):
                assert stranger.get("/v1/classes", headers={"Authorization": given}).status_code == 401, given
            headers = {"Authorization": f"Bearer {TOKEN}"}
            assert stranger.post("/v1/segment", content=image_bytes(), headers=headers).status_code == 200
        assert served.metric("mfmd_requests_refused_total", reason="unauthorized") == len(guarded) + 7


def test_a_stranger_is_answered_before_the_body_is_read(world: World) -> None:
    with running(world.settings(token=TOKEN)) as served:
        connection = http.client.HTTPConnection("127.0.0.1", served.client.base_url.port, timeout=20)
        connection.putrequest("POST", "/v1/segment")
        connection.putheader("Content-Length", str(30 << 20))
        connection.endheaders()  # and not one byte of the body
        assert connection.getresponse().status == 401
        connection.close()


def test_status_follows_https_with_the_token(world: World, tmp_path: Path) -> None:
    certificate, key = self_signed(tmp_path)
    token = tmp_path / "token"
    token.write_text(TOKEN + "\n")
    world.layout.run.mkdir(parents=True)
    version = world.add(1)
    settings = world.settings(token_file=token, certificate=certificate, key=key)
    with running(settings, token=TOKEN) as served:
        served.wait_for(version)
        wait_until(world.layout.run_file("serve").exists, "the address is published")
        plane = collect_status(settings).plane
        assert plane.up and plane.version == version, plane.detail
        with pytest.raises(httpx.TransportError):
            httpx.get(f"http://127.0.0.1:{served.client.base_url.port}/healthz")
        token.write_text("another")
        status = collect_status(settings)
        assert not status.plane.up and sum("serving.token" in message for message in status.messages) == 1
        token.unlink()
        status = collect_status(settings)
        assert sum("serving.token" in message for message in status.messages) == 1, status.messages
        assert TOKEN not in status.model_dump_json()


@pytest.mark.parametrize("text", ["", " \n", "two\nlines", "gr\u00fc\u00df", "tab\tbed"])
def test_a_token_that_no_header_can_carry_is_refused_unseen(world: World, tmp_path: Path, text: str) -> None:
    file = tmp_path / "token"
    file.write_text(text, encoding="utf-8")
    for given in ({"token": text}, {"token_file": file}):
        with pytest.raises(ConfigError, match=r"serving\.(token|token_file)") as refused:
            serve(world.settings(**given))
        assert not text.strip() or text.strip() not in str(refused.value)
