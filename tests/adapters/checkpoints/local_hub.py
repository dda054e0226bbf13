"""A model hub on this machine: the HTTP API that huggingface_hub calls, over commits and pull requests given here."""

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

Files = Mapping[str, bytes]
DATE = "2023-03-17T10:00:00.000Z"
BOT, TITLE = "SFconvertbot", "Adding `safetensors` variant of this model"


def commit_id(text: str) -> str:
    """A commit's id."""
    return hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()


@dataclass
class Repository:
    """Commits with their files, what each ref's history is (newest first), and the pull requests."""

    files: dict[str, Files] = field(default_factory=dict)
    refs: dict[str, list[str]] = field(default_factory=dict)
    requests: list[dict[str, Any]] = field(default_factory=list)

    def commit(self, name: str, files: Files, ref: str = "main", parents: list[str] | None = None) -> str:
        """Add a commit to `ref`, on its head or on other parents."""
        made = commit_id(name)
        self.files[made] = files
        self.refs[ref] = [made, *(self.refs.get(ref, []) if parents is None else parents)]
        return made

    def request(self, files: Files, *, author: str = BOT, title: str = TITLE, status: str = "open") -> str:
        """Open a pull request of one commit on the head of main."""
        number = len(self.requests) + 1
        made = self.commit(f"request {number}", files, f"refs/pr/{number}", self.refs["main"])
        about = {"title": title, "num": number, "author": {"name": author}, "status": status, "isPullRequest": True}
        self.requests.append({**about, "createdAt": DATE, "repo": {"name": "street/model", "type": "model"}})
        return made


@dataclass
class Hub:
    """The repositories by id, what was asked, and what is wrong with the hub."""

    repositories: dict[str, Repository] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    silent: str = ""
    """A request whose path contains this gets no answer."""
    broken: str = ""
    """A request whose path contains this is answered with status 500."""
    steps: int = 1
    """Parts in which a file arrives, a moment apart."""
    cut: Mapping[str, int] = field(default_factory=dict)
    """Bytes that arrive of the named files, though more are announced first."""
    torn: set[str] = field(default_factory=set)
    """Files whose next transfer ends halfway, as when the line breaks."""
    closed: threading.Event = field(default_factory=threading.Event)
    url: str = ""


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def log_message(self, format: str, *args: object) -> None:
        """Write nothing."""

    def do_HEAD(self) -> None:
        """Answer a question about a file."""
        self._answer(body=False)

    def do_GET(self) -> None:
        """Answer a question about a model, or send a file."""
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        path = urlsplit(self.path).path
        self.hub.asked.append(path)
        if self.hub.silent and self.hub.silent in path:
            self.hub.closed.wait()
            return
        if self.hub.broken and self.hub.broken in path:
            self._send(500, b"")
            return
        parts = [unquote(part) for part in path.strip("/").split("/")]
        if parts[:2] == ["api", "models"]:
            self._describe("/".join(parts[2:4]), parts[4:])
        elif parts[0] == "api":  # the library asks for more than models
            self._send(404, b"")
        else:
            self._file("/".join(parts[:2]), parts[3], "/".join(parts[4:]), body=body)

    def _describe(self, name: str, rest: list[str]) -> None:
        if (found := self.hub.repositories.get(name)) is None:
            self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
            return
        what, revision = [*rest, "", ""][:2]
        if what == "discussions":
            self._json({"discussions": found.requests, "count": len(found.requests), "start": 0})
            return
        history = found.refs.get(revision or "main") or ([revision] if revision in found.files else [])
        if not history:
            self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        elif what == "commits":
            about = {"authors": [{"user": "someone"}], "date": DATE, "title": "a commit", "message": ""}
            self._json([{"id": commit, **about} for commit in history])
        elif what == "tree":
            files = found.files[history[0]].items()
            self._json(
                [
                    {"type": "file", "path": path, "size": len(content), "oid": commit_id(path)}
                    for path, content in files
                ]
            )
        else:
            self._json({"id": name, "sha": history[0], "private": False, "siblings": []})

    def _file(self, name: str, commit: str, path: str, *, body: bool) -> None:
        content = self.hub.repositories[name].files.get(commit, {}).get(path)
        if content is None:
            self._send(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
            return
        headers = {"X-Repo-Commit": commit, "ETag": f'"{hashlib.sha256(content).hexdigest()}"'}
        sent = content[: self.hub.cut.get(path)] if body else content
        torn = body and path in self.hub.torn
        self._send(200, sent, headers, body=body, steps=self.hub.steps, most=len(sent) // 2 if torn else len(sent))
        if torn:
            self.hub.torn.discard(path)
            self.close_connection = True

    def _json(self, content: object) -> None:
        self._send(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _send(
        self,
        status: int,
        content: bytes,
        headers: Mapping[str, str] | None = None,
        *,
        body: bool = True,
        steps: int = 1,
        most: int | None = None,
    ) -> None:
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        step = max(1, -(-len(content) // steps))
        for start in range(0, len(content) if body else 0, step):
            self.wfile.write(content[:most][start : start + step])
            if steps > 1:
                self.hub.closed.wait(0.05)


@contextmanager
def serve_hub() -> Iterator[Hub]:
    """Serve an empty hub on a free port of this machine."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield hub
    finally:
        hub.closed.set()
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def use_hub(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """Serve an empty hub, which this process uses with a cache of its own."""
    from huggingface_hub import close_session, constants

    with serve_hub() as served:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
        monkeypatch.setattr(constants, "ENDPOINT", served.url)
        template = served.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        yield served
        close_session()
