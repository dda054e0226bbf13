"""Arithmetic of the benchmark's tables: means, deviations, paired gains, forgetting; and which runs are missing."""

import json

import pytest
from adaptation import missing, read_results
from adaptation_arms import ARMS, STARTS, settings_of
from adaptation_report import draw_curves, figure, mean_curve, paired_gain, table
from adaptation_runs import Run
from added_terms import PAIRS, TERMS
from continual_report import continual_report, draw_drift, forgetting, mean_matrix, on_current


def line(arm: str, seed: int, dusk: float, day: float = 0.5) -> dict:
    return {
        "start": "mild",
        "arm": arm,
        "seed": seed,
        "candidate_dusk": dusk,
        "candidate_day": day,
        "train_seconds": 10.0,
        "curve": [],
    }


LINES = [
    line("source", 0, 0.20, 0.50),
    line("dacs", 0, 0.30, 0.49),
    line("dacs", 1, 0.34, 0.51),
    line("dacs_mfm", 1, 0.37),
    line("dacs_mfm", 0, 0.32),
]


def test_mean_and_sample_deviation_in_points() -> None:
    both = figure([0.30, 0.34])
    assert (round(both.mean, 6), round(both.deviation, 4), both.seeds) == (32.0, 2.8284, 2)
    assert str(both) == "32.0 ± 2.8" and str(figure([0.3])) == "30.0"
    with pytest.raises(ValueError, match="no runs"):
        figure([])


def test_gain_is_paired_by_seed() -> None:
    gain = paired_gain(LINES, "mild", "dacs_mfm", "dacs")
    assert gain is not None
    assert gain.mean == pytest.approx(2.5) and gain.deviation == pytest.approx(0.7071, abs=1e-3)
    assert paired_gain([*LINES[:2], LINES[3]], "mild", "dacs_mfm", "dacs") is None


def test_table_has_gain_over_start_and_recipe_and_day_change() -> None:
    rows = table(LINES, "mild").splitlines()
    assert "| DACS | 32.0 ± 2.8 | +12.0 | - | 50.0 ± 1.4 | +0.0 | 2 | 10 |" in rows
    assert "| DACS + MFM | 34.5 ± 3.5 | +14.5 | +2.5 ± 0.7 | 50.0 ± 0.0 | +0.0 | 2 | 10 |" in rows
    assert len(rows) == 2 + 3


def test_curves_are_averaged_where_all_runs_were_scored() -> None:
    first = {"curve": [{"step": 10, "dusk": 0.2}, {"step": 20, "dusk": 0.4}]}
    other = {"curve": [{"step": 10, "dusk": 0.4}]}
    steps, means = mean_curve([first, other], "dusk")
    assert steps == [10] and means == pytest.approx([30.0])


MATRIX = [[0.50, 0.20, 0.50], [0.55, 0.25, 0.55], [0.40, 0.45, 0.40], [0.52, 0.30, 0.52]]


def test_drift_reads_the_diagonal_and_the_loss_of_day() -> None:
    assert on_current(MATRIX) == [0.55, 0.45, 0.52]
    assert forgetting(MATRIX) == pytest.approx(0.15)
    assert mean_matrix([{"matrix": MATRIX}, {"matrix": MATRIX}]) == MATRIX
    drift = {"start": "strong", "arm": "dacs", "seed": 0, "stages": ["day", "fog", "day again"], "matrix": MATRIX}
    assert "| DACS | 55.0 | 45.0 | 52.0 | 50.7 | 41.0 | 15.0 | 1 |" in continual_report([drift])


def settings_of_terms(arm: str) -> set[str]:
    """Sections of `recipe.advanced` that the arm's term sets."""
    return {name for term, added in (TERMS | PAIRS).items() if arm.endswith(f"_{term}") for name in added.advanced}


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("arm", ARMS)
def test_every_arm_is_a_valid_configuration_and_differs_from_its_recipe_in_one_term_only(tmp_path, start, arm) -> None:
    settings = settings_of(tmp_path, tmp_path, STARTS[start].settings, ARMS[arm].settings)
    if ARMS[arm].recipe is not None:
        other = settings_of(tmp_path, tmp_path, STARTS[start].settings, ARMS[ARMS[arm].recipe].settings)
        added = [section for section, _ in settings.recipe.advanced if section in settings_of_terms(arm)]
        mine = settings.recipe.advanced.model_copy(
            update={name: getattr(other.recipe.advanced, name) for name in added}
        )
        recipe = settings.recipe.model_copy(update={"advanced": mine})
        assert bool(added) != (settings.mfm.enabled and not other.mfm.enabled), "MFM, or another term"
        assert settings.model_copy(update={"mfm": other.mfm, "recipe": recipe}) == other != settings
        assert ARMS[arm].source == ARMS[ARMS[arm].recipe].source


def test_finished_runs_are_skipped_and_other_settings_are_other_runs(tmp_path) -> None:
    run = Run(tmp_path, tmp_path, "mild", "dacs", 0)
    longer = Run(tmp_path, tmp_path, "mild", "dacs", 0, extra={"round.steps": 7})
    results = tmp_path / "results.jsonl"
    assert missing([run, longer], results) == [run, longer]
    results.write_text(json.dumps({"key": run.key()}) + "\n" + '{"key": "cut of')
    assert len(read_results(results)) == 1
    assert missing([run, longer], results) == [longer]


def test_pictures_are_drawn_only_when_there_is_something_to_draw(tmp_path) -> None:
    curve = [{"step": 10, "dusk": 0.2, "day": 0.5}, {"step": 20, "dusk": 0.3, "day": 0.5}]
    assert not draw_curves(LINES, "mild", tmp_path / "none.png")
    assert draw_curves([*LINES[:1], LINES[1] | {"curve": curve}], "mild", tmp_path / "curves.png")
    drift = {"start": "mild", "arm": "dacs", "seed": 0, "stages": ["day", "fog", "day again"], "matrix": MATRIX}
    assert draw_drift([drift], "mild", tmp_path / "drift.png") and not draw_drift(
        [drift], "strong", tmp_path / "no.png"
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["curves.png", "drift.png"]
