"""Arithmetic of the benchmark's tables: means, deviations, paired gains, forgetting; and which runs are missing."""

import json
from pathlib import Path

import pytest
from adaptation import missing, read_results
from adaptation_arms import ALL_STARTS, ARMS, DAFORMER_MASKED, FORGETTING, STARTS, settings_of
from adaptation_report import draw_curves, figure, mean_curve, paired_gain, table
from adaptation_runs import Run
from added_terms import PAIRS, TERMS
from continual_report import continual_report, draw_drift, forgetting, mean_matrix, on_current

from configs.recipe import DaformerSettings, MicSettings, SelfTrainingSettings
from configs.settings import Settings


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
    gain = paired_gain({0: 0.32, 1: 0.37, 2: 0.9}, {1: 0.34, 0: 0.30})
    assert gain is not None
    assert gain.mean == pytest.approx(2.5) and gain.deviation == pytest.approx(0.7071, abs=1e-3)
    assert paired_gain({0: 0.3}, {1: 0.4}) is None


def test_table_has_gain_over_start_and_recipe_on_both_parts() -> None:
    rows = table(LINES, "mild").splitlines()
    assert "| DACS | 32.0 ± 2.8 | +12.0 | - | 50.0 ± 1.4 | +0.0 | - | 2 | 10 |" in rows
    assert "| DACS + MFM | 34.5 ± 3.5 | +14.5 | +2.5 ± 0.7 | 50.0 ± 0.0 | +0.0 | +0.0 ± 1.4 | 2 | 10 |" in rows
    assert len(rows) == 2 + 3


def test_averages_have_rows_beside_the_candidate_that_they_are_of() -> None:
    lines = [line("forget", seed, 0.40, 0.48) | {"average_50_dusk": 0.39, "average_50_day": 0.50} for seed in (0, 1)]
    rows = table([*lines, line("forget_anchor_20", 1, 0.39, 0.49)], "mild").splitlines()
    assert rows[3].startswith("| DACS + MFM, 50 % of it averaged with the start | 39.0 ± 0.0 | - | -1.0 ± 0.0 | 50.0")
    assert rows[4].endswith("| 49.0 | - | +1.0 | 1 | 10 |"), "one seed has no deviation"


def test_retina_tables_have_the_iou_of_vessels() -> None:
    scores = {"candidate_STARE": 0.78, "candidate_DRIVE": 0.8}
    ious = {f"{name}_iou": {"vessel": value - 0.1} for name, value in scores.items()}
    rows = table([{"start": "retina", "arm": "dacs", "seed": 1, "train_seconds": 9.0, **scores, **ious}], "retina")
    assert "| DACS | 78.0 | - | - | 68.0 | 80.0 | - | - | 70.0 | 1 | 9 |" in rows


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


def without_masked_image(recipe: SelfTrainingSettings, host: SelfTrainingSettings) -> SelfTrainingSettings:
    """Settings of recipe mic as those of the host that it adds its loss to, whose other losses it must not add."""
    kind, inner = type(host), type(host.advanced)
    added = recipe.model_dump(exclude={*kind.model_fields})
    assert added.pop("masked_image_weight") == 1.0 and not any(added.values()), "losses that the host has not"
    values = recipe.model_dump(include={*kind.model_fields})
    values |= {"name": host.name, "advanced": recipe.advanced.model_dump(include={*inner.model_fields})}
    if not any(recipe.model_dump(include={f"margin_{side}" for side in ("top", "bottom", "left", "right")}).values()):
        values["margin_of"] = host.margin_of  # of nothing
    return kind.model_validate(values)


def settings_from(start: str, arm: str, folder: Path) -> Settings:
    """Settings of an arm from a start, without its data."""
    return settings_of(ALL_STARTS[start], folder, folder, folder, ARMS[arm].settings)


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("arm", [arm for arm in ARMS if arm not in FORGETTING])
def test_every_arm_is_a_valid_configuration_and_differs_from_its_recipe_in_one_term_only(tmp_path, start, arm) -> None:
    settings = settings_from(start, arm, tmp_path)
    if ARMS[arm].recipe is not None:
        other = settings_from(start, ARMS[arm].recipe, tmp_path)
        if masked := settings.recipe.name == "mic" != other.recipe.name:
            settings = settings.model_copy(update={"recipe": without_masked_image(settings.recipe, other.recipe)})
        added = [section for section, _ in settings.recipe.advanced if section in settings_of_terms(arm)]
        mine = settings.recipe.advanced.model_copy(
            update={name: getattr(other.recipe.advanced, name) for name in added}
        )
        recipe = settings.recipe.model_copy(update={"advanced": mine})
        assert (masked or bool(added)) != (settings.mfm.enabled and not other.mfm.enabled), "MFM, or another term"
        assert settings.model_copy(update={"mfm": other.mfm, "recipe": recipe}) == other
        assert masked or settings != other
        assert ARMS[arm].source == ARMS[ARMS[arm].recipe].source


def test_the_masked_image_over_daformer_keeps_its_published_margins() -> None:
    """CamVid's preset has none, so the arms themselves do not show it."""
    own = {name.removeprefix("recipe."): value for name, value in DAFORMER_MASKED.items()}
    host = DaformerSettings.model_validate({"thing_classes": own["thing_classes"]})
    assert without_masked_image(MicSettings.model_validate(own), host) == host and host.margin_top > 0.0


@pytest.mark.parametrize("arm", FORGETTING)
def test_a_measure_against_forgetting_changes_the_recipe_alone(tmp_path, arm) -> None:
    settings, source = settings_from("strong", arm, tmp_path), ARMS[arm].source
    other = settings_from("strong", "dacs_mfm" if source else "source_free_mfm", tmp_path)
    assert (settings == other) == ARMS[arm].averages
    assert settings.model_copy(update={"recipe": other.recipe}) == other
    shared = {"ema_decay", "threshold", "margin_top", "margin_bottom", "class_balance", "jitter", "thing_classes"}
    assert settings.recipe.model_dump(include=shared) == other.recipe.model_dump(include=shared)
    assert ARMS[arm].averages or source == ARMS[ARMS[arm].recipe].source


@pytest.mark.parametrize("arm", ["dacs_mfm", "dacs_masked_dida", "dacs_masked", "bn"])
def test_arms_keep_what_the_retina_preset_says(tmp_path, arm) -> None:
    settings = settings_from("retina", arm, tmp_path)
    assert [entry.name for entry in settings.classes] == ["background", "vessel"] and settings.round.steps == 100
    assert settings.pretrain.advanced.seed == 1 and settings.recipe.margin_bottom == 0.0
    assert arm == "bn" or not settings.recipe.advanced.classmix


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
