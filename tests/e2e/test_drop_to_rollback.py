"""The main job, nothing replaced: drop folder, bad files, buffer, round under accelerate, gate, swap, rollback."""

import os
import struct
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import pytest

from daemon.demo.driving import DrivenDaemon
from daemon.demo.scoring import ask
from daemon.exit_codes import ExitCode
from storage.buffer.catalog import Catalog
from tests.daemon.collector import Collector, collecting

pytestmark = pytest.mark.disk


@contextmanager
def questions(driven: DrivenDaemon, image: Path) -> Iterator[list[int]]:
    """Ask the server again and again; the versions that answered, in order. Any failed request raises at the end."""
    stop, versions, failures = threading.Event(), [], []

    def keep_asking() -> None:
        base = driven.url("serve")
        assert base is not None
        with httpx.Client(timeout=30.0) as client:
            while not stop.wait(0.05):
                try:
                    versions.append(ask(client, base, image)[1])
                except httpx.HTTPError as error:
                    failures.append(error)

    thread = threading.Thread(target=keep_asking)
    thread.start()
    try:
        yield versions
    finally:
        stop.set()
        thread.join()
    assert not failures


def png_bomb(width: int, height: int) -> bytes:
    """A small PNG file that claims that size."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(100))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def drop_bad_files(folder: Path, good: Path) -> dict[str, str]:
    """Write them; returns the reason expected for each name."""
    (folder / "empty.png").touch()
    (folder / "text.jpg").write_text("this is no image")
    (folder / "half.png").write_bytes(good.read_bytes()[: good.stat().st_size // 2])
    (folder / "huge.png").write_bytes(png_bomb(50_000, 50_000))
    expected = {
        "empty.png": "empty",
        "text.jpg": "not_an_image",
        "half.png": "truncated",
        "huge.png": "too_many_pixels",
    }
    if os.geteuid() != 0:  # root reads everything
        (folder / "secret.png").write_bytes(good.read_bytes())
        (folder / "secret.png").chmod(0)
        expected["secret.png"] = "unreadable"
    return expected


def refused(driven: DrivenDaemon) -> dict[str, str]:
    catalog = Catalog.open(driven.layout.catalog, writable=False)
    try:
        return {item.file.path: item.reason for item in catalog.refused(100)}
    finally:
        catalog.close()


def bad_files_are_refused_while_serving_goes_on(driven: DrivenDaemon, camera: list[Path]) -> None:
    """Also two good ones are taken, and a second daemon is refused."""
    base = driven.url("serve")
    assert base is not None
    expected = drop_bad_files(driven.settings.watch.folder, camera[0])
    driven.drop(camera[:1])
    driven.wait_for(lambda: refused(driven) == expected or None, f"refusals {expected}", 30)
    driven.wait_until_committed(1, 30)
    with httpx.Client(timeout=30.0) as client:
        assert ask(client, base, camera[0])[1] == 1
    driven.drop(camera[1:2])
    driven.wait_until_committed(2, 30)
    control = driven.url("daemon")
    assert control is not None
    assert httpx.get(f"{control}/healthz").status_code == 200
    second = driven.run_command("run")
    assert second.returncode == ExitCode.ALREADY_RUNNING, second.stderr


@pytest.mark.timeout(240)
def test_from_drop_folder_to_rollback(
    driven: DrivenDaemon, camera: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One daemon for all of it: to train a first version and start it takes longer than the rest."""
    with collecting() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.address)
        driven.start()
        from_drop_folder_to_rollback(driven, camera)
    check_traces(collector)


def check_traces(collector: Collector) -> None:
    """Each process sent its spans, and those of the round are one trace, in two processes."""
    (started,) = collector.named("mfmd.round")
    assert (started.facts["mfmd.decision"], started.facts["mfmd.version"]) == ("accepted", 2)
    (process,) = collector.named("mfmd.round.process")
    parts = [span for span in collector.spans if span.parent == process.span]
    assert [span.name.removeprefix("mfmd.round.") for span in parts] == ["loading", "training", "scoring"]
    (gate,) = collector.named("mfmd.gate")
    assert process.parent == gate.parent == started.span and (process.process, gate.process) == ("round", "daemon")
    assert {span.trace for span in (process, gate, *parts)} == {started.trace}
    assert [span.facts["mfmd.version"] for span in collector.named("mfmd.swap")] == [1, 2, 1]
    assert {span.facts.get("mfmd.version") for span in collector.named("POST /v1/segment")} == {"1", "2"}
    assert len(collector.named("mfmd.ingest")) == 28, "24 images, 4 bad files"


def from_drop_folder_to_rollback(driven: DrivenDaemon, camera: list[Path]) -> None:
    driven.wait_until_serving(1, 60)
    bad_files_are_refused_while_serving_goes_on(driven, camera)
    base = driven.url("serve")
    assert base is not None
    with httpx.Client(timeout=30.0) as client:
        before, _ = ask(client, base, camera[0])

        with questions(driven, camera[0]) as versions:
            driven.drop(camera[2:])
            driven.wait_until_committed(len(camera), 30)
            verdict = driven.follow_round(1, 120)
            assert (verdict.decision, verdict.version) == ("accepted", 2), verdict
            driven.wait_until_serving(2, 30)
            after, version = ask(client, base, camera[0])
            assert version == 2
            assert (before != after).any()

            rolled_back = driven.run_command("rollback", "--reason", "end-to-end test")
            assert rolled_back.returncode == 0, rolled_back.stderr
            driven.wait_until_serving(1, 30)
            again, version = ask(client, base, camera[0])

    assert version == 1
    np.testing.assert_array_equal(again, before)
    assert set(versions) == {1, 2}
    changes = np.flatnonzero(np.diff(versions))
    assert len(changes) <= 2, "an old version answered after a new one"
    events = [(event.event, event.version) for event in driven.registry.history()]
    assert ("promoted", 2) in events
    assert events[-1] == ("rolled_back", 1)
    assert driven.stop() == 0
