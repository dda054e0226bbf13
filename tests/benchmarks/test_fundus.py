"""Scores of thin structures, and the tables of the retina benchmark: exact on drawn masks."""

import numpy as np
import pytest
from fundus import SETS, Line, markdown
from fundus_scores import Truth, VesselScore, centreline, mean_score, vessel_score
from scipy import ndimage


def bars() -> np.ndarray:
    """A label: a bar of 3x15 pixels and, apart from it, a line of 1x10."""
    label = np.zeros((20, 20), np.uint8)
    label[3:6, 2:17] = 1
    label[12, 5:15] = 1
    return label


def test_a_centreline_is_thin_and_keeps_the_connections() -> None:
    cross = np.zeros((21, 21), bool)
    cross[8:13, 1:20] = cross[1:20, 8:13] = True
    line = centreline(cross)
    assert line.sum() < 40 and not (line & ~cross).any()
    assert ndimage.label(line, np.ones((3, 3)))[1] == 1, "one piece"
    assert line[10, 4] and line[4, 10], "its arms reach out"
    assert not ndimage.binary_erosion(line, np.ones((2, 2))).any(), "nowhere two pixels wide"
    assert np.array_equal(centreline(bars() == 1)[12], bars()[12] == 1), "a line of one pixel stays"


def test_a_missed_thin_line_costs_more_of_the_centreline_than_of_dice() -> None:
    truth, mask = Truth.of(bars()), bars()
    mask[12] = 0
    score = vessel_score([mask, bars()], [truth, truth])
    thick = int(truth.centreline[:8].sum())
    assert score.centreline == pytest.approx((thick / (thick + 10) + 1) / 2)
    assert score.dice == pytest.approx((90 / 100 + 1) / 2)
    assert score.pooled_dice == pytest.approx(200 / 210) and score.iou == pytest.approx(100 / 110)


def line(event: str, dice: float) -> Line:
    return Line(event, 1, dict.fromkeys(SETS, VesselScore(0.5, dice, 0.7, 0.8)), 60.0)


def test_the_tables_have_each_seed_and_the_mean_with_its_change() -> None:
    runs = {1: [line("source model", 0.60), line("round 1", 0.66)], 2: [line("source model", 0.70)] * 2}
    rows = markdown(runs, "command").splitlines()
    assert sum(row.startswith("| 1 |") for row in rows) == sum(row.startswith("| 2 |") for row in rows) == 2
    assert any(row.startswith("| source model | 65.0 | 70.0 | 50.0 | 80.0 | 65.0") for row in rows)
    assert any(row.startswith("| after round 1 | 68.0 |") for row in rows)
    assert rows[-1].startswith("| change | +3.0 | +0.0 | +0.0 | +0.0 | +3.0")
    assert mean_score([runs[1][0].scores["drive"], runs[1][1].scores["drive"]]).dice == pytest.approx(0.63)
