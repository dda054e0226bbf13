"""Bad files in the drop folder: each is refused with its reason, and the daemon serves and ingests on."""

import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from daemon.demo.driving import DrivenDaemon
from daemon.demo.scoring import ask
from daemon.exit_codes import ExitCode
from storage.buffer.catalog import Catalog

pytestmark = pytest.mark.disk


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


def test_bad_files_are_refused_while_serving_goes_on(
    untrained: DrivenDaemon, camera: Callable[[int], list[Path]]
) -> None:
    first, last = camera(2)
    untrained.start()
    untrained.wait_until_serving(1, 60)
    base = untrained.url("serve")
    assert base is not None

    expected = drop_bad_files(untrained.settings.watch.folder, first)
    untrained.drop([first])
    untrained.wait_for(lambda: refused(untrained) == expected or None, f"refusals {expected}", 30)
    untrained.wait_until_committed(1, 30)
    with httpx.Client(timeout=30.0) as client:
        assert ask(client, base, first)[1] == 1
    untrained.drop([last])
    untrained.wait_until_committed(2, 30)
    control = untrained.url("daemon")
    assert control is not None
    assert httpx.get(f"{control}/healthz").status_code == 200
    second = untrained.run_command("run")
    assert second.returncode == ExitCode.ALREADY_RUNNING, second.stderr
    assert untrained.stop() == 0
