"""Files whose decoding costs too much: refused once, and neither ingest nor its end waits for them."""

import time

from tests.storage.media.test_bounded import many_scans


def test_a_file_that_costs_too_much_is_refused_once_and_the_good_ones_go_on(bench, drop, write_image):
    (drop / "0.jpg").write_bytes(many_scans(3000, 3000))
    for number in range(4):
        write_image(drop / f"{number}.png", number)
    costly = {"advanced": {"decode_seconds": 1.0}, "max_file_bytes": 50_000_000, "max_pixels": 10_000_000}
    world = bench(watch=costly)
    world.until(lambda: world.counts.frames == 4 and world.counts.refused == {"too_costly": 1})
    world.close()
    again = bench(watch=costly)
    write_image(drop / "5.png", 5)
    again.until(lambda: again.counts.frames == 5)
    assert again.value("mfmd_ingest_rejected_total", reason="too_costly") == 0, "it was decoded again"
    assert again.counts.refused == {"too_costly": 1}


def test_neither_a_step_nor_the_end_waits_for_files_that_cost_too_much(bench, drop):
    """Health asks that steps end; a step that waited for a row of such files would take minutes."""
    content = many_scans(2000, 20_000)
    for number in range(3):
        (drop / f"{number}.jpg").write_bytes(content + bytes(number))
    costly = {"advanced": {"decode_seconds": 1000.0}, "max_file_bytes": 50_000_000, "max_pixels": 10_000_000}
    world = bench(watch=costly)
    started = time.monotonic()
    world.until(lambda: world.ingest._decoding)
    world.ingest.step()
    assert world.counts.refused == {}, "nothing is known about them"
    world.close()
    assert time.monotonic() - started < 30, "decoding one takes a minute"
