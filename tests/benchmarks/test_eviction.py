"""The stream of benchmarks/eviction.py is what its text says, and its arms keep what they must on a short one."""

import eviction
import numpy as np


def test_the_stream_has_the_shares_that_the_text_names():
    stream = eviction.draw_stream(1000)
    assert stream.night.mean() == 0.1
    assert abs(stream.still.mean() - 1 / 3) < 0.01
    assert not stream.night[-90:].any() and stream.night.any()
    assert stream.embedding.shape == (1000, 512)


def test_a_kept_frame_has_no_gap_and_others_have_one():
    stream = eviction.draw_stream(200)
    gap = eviction.gaps(stream, np.arange(0, 200, 2))
    assert np.allclose(gap[::2], 0, atol=1e-3)
    assert gap[1::2].min() > 0.01


def test_admission_stores_the_still_camera_rarely():
    stream = eviction.draw_stream(200)
    free, filtered = (eviction.run_arm(stream, "fifo", admit, 40) for admit in (False, True))
    assert (free.stored, free.skipped, len(free.kept)) == (200, 0, 40)
    assert filtered.stored + filtered.skipped == 200
    assert filtered.skipped >= stream.still.sum() - 3
