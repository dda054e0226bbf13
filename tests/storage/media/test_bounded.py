"""Decoding within a budget: what costs too much is refused, and everything else comes out as it does without one."""

import errno
import io
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from storage.errors import RefusedImage
from storage.media.bounded import DecodeLimits, cancel_decodes, decode_bounded
from storage.media.images import decode_photo

LIMITS = DecodeLimits(max_bytes=64 * 2**20, max_pixels=64_000_000, seconds=1.0)
SCAN = b"\xff\xda"
PARENT = """
import sys
from storage.media.bounded import DecodeLimits, decode_bounded
decode_bounded(sys.stdin.buffer.read(), DecodeLimits(10**8, 10**7, 1000.0))
"""


def _drawn(kind: str, size: tuple[int, int] = (90, 60), **options: object) -> bytes:
    rng = np.random.default_rng(1)
    file = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), np.uint8)).save(file, kind, **options)
    return file.getvalue()


def many_scans(side: int, scans: int) -> bytes:
    """Draw a grey progressive JPEG of side x side pixels; repeat its last scan."""
    file = io.BytesIO()
    Image.new("L", (side, side), 90).save(file, "JPEG", progressive=True)
    data = file.getvalue()
    last = data.rindex(SCAN)
    return data[:last] + data[last:-2] * scans + data[-2:]


def _children(parent: int | None = None) -> list[psutil.Process]:
    found = psutil.Process(parent).children()
    return [process for process in found if "storage.media.decode_child" in " ".join(process.cmdline())]


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "WEBP", "GIF", "BMP", "JPEG2000", "PPM", "AVIF"])
def test_pixels_are_those_of_an_unbounded_decode(kind: str, tmp_path: Path) -> None:
    data = _drawn(kind)
    plain = decode_photo(data, max_bytes=LIMITS.max_bytes, max_pixels=LIMITS.max_pixels)
    np.testing.assert_array_equal(decode_bounded(data, LIMITS).pixels, plain.pixels)
    path = tmp_path / "image"
    path.write_bytes(data)
    np.testing.assert_array_equal(decode_bounded(path, LIMITS).pixels, plain.pixels)


def test_the_time_of_the_shot_comes_out_of_a_child() -> None:
    exif = Image.Exif()
    exif[0x0132] = "2026:11:29 01:02:03"
    assert decode_bounded(_drawn("WEBP", exif=exif.tobytes()), LIMITS).exif[0x0132] == "2026:11:29 01:02:03"


def test_thousands_of_scans_end_at_the_budget_and_the_next_image_is_decoded() -> None:
    data = many_scans(3000, 3000)
    assert len(data) < 20_000_000
    before = time.process_time()
    with pytest.raises(RefusedImage, match="more than 1 s of processor time") as caught:
        decode_bounded(data, LIMITS)
    assert caught.value.reason == "too_costly"
    assert time.process_time() - before < 1.0, "in this process"
    assert decode_bounded(_drawn("WEBP"), LIMITS).pixels.shape == (60, 90, 3)


def test_few_scans_are_decoded_without_a_child() -> None:
    cancel_decodes()
    assert decode_bounded(_drawn("JPEG", progressive=True), LIMITS).pixels.shape == (60, 90, 3)
    assert decode_bounded(many_scans(64, 2), LIMITS).pixels.shape == (64, 64, 3)
    assert not _children()


def test_a_refusal_names_the_file_and_keeps_the_child(tmp_path: Path) -> None:
    path = tmp_path / "cut.ppm"
    path.write_bytes(_drawn("PPM")[:-100])
    for _ in range(2):
        with pytest.raises(RefusedImage) as caught:
            decode_bounded(path, LIMITS)
        assert caught.value.reason == "truncated" and str(caught.value).startswith(f"{path}: ")
    assert len(_children()) == 1


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    data = _drawn("PPM", (5000, 4000))
    for name in ("MEMORY", "BYTES_A_PIXEL", "BYTES_A_BYTE"):
        monkeypatch.setattr(f"storage.media.bounded.{name}", 0)
    with pytest.raises(RefusedImage, match="decoding it takes more than 0 bytes") as caught:
        decode_bounded(data, LIMITS)
    assert caught.value.reason == "too_costly"
    monkeypatch.undo()
    assert decode_bounded(data, LIMITS).pixels.shape == (4000, 5000, 3)


def test_a_child_that_is_killed_blames_no_file() -> None:
    data, errors = many_scans(3000, 3000), []

    def decode() -> None:
        try:
            decode_bounded(data, DecodeLimits(LIMITS.max_bytes, LIMITS.max_pixels, 60.0))
        except OSError as error:
            errors.append(error)

    for end in (cancel_decodes, lambda: [process.kill() for process in _children()]):
        thread = threading.Thread(target=decode)
        thread.start()
        until = time.monotonic() + 30
        while not any(process.cpu_times().user > 0.5 for process in _children()):
            assert time.monotonic() < until and thread.is_alive()
            time.sleep(0.02)
        end()
        thread.join(30)
        assert not thread.is_alive()
    assert len(errors) == 2


def test_a_child_that_hangs_without_processor_time_is_given_up_and_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    cancel_decodes()
    decode_bounded(_drawn("WEBP"), LIMITS)
    [child] = _children()
    child.suspend()
    monkeypatch.setattr("storage.media.bounded.IDLE_SECONDS", 0.1)
    monkeypatch.setattr("storage.media.bounded.WAIT_A_SECOND", 0.0)
    result: list[object] = []

    def decode() -> None:
        try:
            result.append(decode_bounded(_drawn("BMP", (900, 900)), LIMITS))
        except OSError as error:
            result.append(error.errno)

    thread = threading.Thread(target=decode, daemon=True)
    thread.start()
    thread.join(30)
    assert result == [errno.ECANCELED]
    monkeypatch.undo()
    assert decode_bounded(_drawn("WEBP"), LIMITS).pixels.shape == (60, 90, 3)


def test_an_image_that_kills_or_hangs_every_child_is_refused_after_a_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("storage.media.bounded.ATTEMPTS", 3)
    data = _drawn("BMP", (800, 800))

    def killed() -> str:
        decode_bounded(_drawn("WEBP"), LIMITS)
        [child] = _children()
        child.suspend()
        with monkeypatch.context() as short:
            short.setattr("storage.media.bounded.IDLE_SECONDS", 0.1)
            short.setattr("storage.media.bounded.WAIT_A_SECOND", 0.0)
            try:
                decode_bounded(data, LIMITS)
            except RefusedImage as error:
                return error.reason
            except OSError:
                return "later"
        return "decoded"

    cancel_decodes()
    assert [killed(), killed()] == ["later"] * 2
    assert decode_bounded(data, LIMITS).pixels.shape == (800, 800, 3), "one success, and it begins again"
    assert [killed(), killed(), killed()] == ["later", "later", "decoder_crashed"]
    assert killed() == "later", "a retry that was asked for has as many"


def test_a_child_that_was_killed_while_idle_costs_no_image() -> None:
    decode_bounded(_drawn("WEBP"), LIMITS)
    for child in _children():
        child.kill()
        while child.status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.01)
    assert decode_bounded(_drawn("WEBP"), LIMITS).pixels.shape == (60, 90, 3)
    assert len(_children()) == 1


def test_a_child_starts_without_settings() -> None:
    """Importing pydantic would take as long as the rest of its start."""
    code = "import sys, storage.media.decode_child; print('pydantic' in sys.modules)"
    assert subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True).stdout == "False\n"


def test_a_child_ends_at_once_with_a_parent_that_is_killed() -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT], stdin=subprocess.PIPE) as parent:
        assert parent.stdin is not None
        parent.stdin.write(many_scans(2000, 20_000))
        parent.stdin.close()
        until, found = time.monotonic() + 30, list[psutil.Process]()
        while not found or found[0].cpu_times().user < 1.0:  # it starts in less
            assert time.monotonic() < until and parent.poll() is None
            time.sleep(0.02)
            found = _children(parent.pid)
        parent.kill()
    found[0].wait(10)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_to_the_whole_group_while_a_child_starts_blames_no_file(number: signal.Signals) -> None:
    cancel_decodes()
    result: list[object] = []

    def decode() -> None:
        try:
            result.append(decode_bounded(_drawn("WEBP"), LIMITS).pixels.shape)
        except OSError:
            result.append("later")

    thread = threading.Thread(target=decode)
    thread.start()
    while not (found := _children()):
        assert thread.is_alive()
    found[0].send_signal(number)
    thread.join(30)
    assert result in ([(60, 90, 3)], ["later"])


def test_decodes_of_many_threads_do_not_mix() -> None:
    wanted = {value: _drawn("WEBP", (64 + value, 64), lossless=True) for value in range(8)}
    wrong: list[int] = []

    def decode(value: int) -> None:
        for _ in range(5):
            shape = decode_bounded(wanted[value], LIMITS).pixels.shape
            wrong.extend([value] * (shape != (64, 64 + value, 3)))

    threads = [threading.Thread(target=decode, args=(value,)) for value in wanted]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    cancel_decodes()
    assert not _children()
