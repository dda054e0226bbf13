"""The step benchmark: what it counts, what it compares, and that its cases run real steps."""

import argparse

import pytest
import torch
from step_cases import Case, Runner, Sample, draw, draw_state, settings_of
from step_parts import MFM, Clock, cut_step
from step_time import (
    ROUND_OPTIONS,
    SIZES,
    Timed,
    common_sections,
    option_cases,
    quartiles,
    ratio,
    recipe_cases,
    row,
)
from term_cases import TITLES, term_cases

from adapters.recipes.build import RECIPES
from configs.round import RoundSettings
from tests.sections import recipe_settings


def timed(name: str, walls: list[float], images: int = 8, waiting: float = 0.0) -> Timed:
    samples = [Sample(wall, 0.5 * wall, waiting * wall) for wall in walls]
    return Timed(Case(name), samples, images, 100.0)


def arguments(**changes: object) -> argparse.Namespace:
    return argparse.Namespace(
        **{**SIZES["tiny"], "crop": 64, "batch": 2, "device": "cpu", "precision": "no", "threads": 1, **changes}
    )


def test_ratios_are_taken_turn_by_turn() -> None:
    """A turn in which the machine was busy slows both and leaves the ratio alone."""
    case, baseline = timed("a", [3.0, 30.0, 3.0]), timed("b", [2.0, 20.0, 2.0])
    assert ratio(case, baseline, "wall") == "1.50 (1.50-1.50)"


def test_ratios_are_for_the_same_number_of_images() -> None:
    """Two batches of accumulation take twice as long, and are no slower."""
    assert ratio(timed("two", [4.0], images=16), timed("one", [2.0], images=8), "cpu").startswith("1.00")


def test_quartiles() -> None:
    assert quartiles([1.0, 2.0, 3.0, 4.0, 5.0]) == (2.0, 3.0, 4.0)
    assert quartiles([7.0]) == (7.0, 7.0, 7.0)


def test_a_row_says_images_a_second_waiting_and_the_reference() -> None:
    line = row(timed("dacs", [2.0, 2.0], waiting=0.25), timed("bare", [1.0, 1.0]), timed("plain", [3.0, 3.0]))
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[:2] == ["dacs", "4.00"]
    assert cells[5] == "25.0 %"
    assert cells[6].startswith("2.00") and cells[8].startswith("1.50")


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_has_its_cases(recipe) -> None:
    names = [case.name for case in recipe_cases(recipe)]
    test_time = recipe_settings(name=recipe).test_time
    assert names[: 1 if test_time else 2] == ([recipe] if test_time else [recipe, f"{recipe}+mfm"])
    assert any(case.reference for case in recipe_cases(recipe)) == (recipe == "dacs")


def test_each_term_is_timed_alone_and_with_mfm_beside_its_base_on_the_same_network(tmp_path) -> None:
    cases = term_cases("dacs", "dinov2_tiny", tmp_path)
    assert tuple(cases) == TITLES
    for base, case in (pair for pairs in cases.values() for pair in pairs):
        mine, theirs = (settings_of(tmp_path, common_sections(arguments()), one, 5) for one in (case, base))
        assert mine.network == theirs.network and mine.state == theirs.state and not theirs.mfm.enabled
        assert case.name != base.name and mine.recipe.advanced.separate_steps == (case.turn > 2)


@pytest.mark.nightly
@pytest.mark.parametrize("title", TITLES)
def test_terms_run_steps(title, tmp_path, monkeypatch) -> None:
    """With MFM: a turn has the loss of each term."""
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    torch.set_num_threads(1)
    _, case = term_cases("dacs", "dinov2_tiny", tmp_path)[title][-1]
    settings = settings_of(tmp_path, common_sections(arguments()), case, 5)
    draw_state(settings)
    runner = Runner(settings, case)
    found = {name for _ in range(case.turn) for name in runner._training.step(1.0).losses}
    wanted = {"interval": "mfm", "omuda_feature": "foundation_source", "masked_tokens": "masked_image"}
    wanted |= {"mfm_da": "translated", "translation": "alignment", "blda": "mix_quantile"}
    inside = title in ("class_confidence", "class_bce")  # they change other losses
    assert "mfm" in found and (inside or wanted.get(title, title) in found)


def test_every_option_of_a_round_is_a_field_that_changes() -> None:
    assert len(option_cases("dacs")) == 1 + len(ROUND_OPTIONS)
    for sections in ROUND_OPTIONS.values():
        for name, value in sections["round"].items():
            assert RoundSettings.model_fields[name].default != value


def test_drawn_images_show_their_classes() -> None:
    image, label = draw(0, 40, 56, 3)
    assert image.shape == (40, 56, 3) and label.shape == (40, 56) and set(label.flat) == {0, 1, 2}
    means = torch.tensor([image[label == index].mean() for index in range(3)])
    spread = torch.tensor([image[label == index].mean(axis=0).std() for index in range(3)])
    assert means.isfinite().all() and spread.max() > 0


@pytest.mark.parametrize("number", [1, 3])
def test_cases_run_steps(number, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")  # a case sets it for its process; here it is put back
    torch.set_num_threads(1)
    case = recipe_cases("dacs")[number]
    settings = settings_of(tmp_path, common_sections(arguments()), case, 5)
    draw_state(settings)
    runner = Runner(settings, case)
    sample = runner.step()
    assert runner.images == 4
    assert 0.0 < sample.waiting < sample.wall and sample.cpu > 0.0
    assert runner.peak_memory() > 50.0
    assert settings.mfm.enabled == case.name.endswith("+mfm")


@pytest.mark.nightly
def test_the_cut_step_has_the_gradients_of_the_step(tmp_path, monkeypatch) -> None:
    """A graph that is cut and joined by its gradients gives the gradients of the whole: the parts are all of it."""
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    torch.set_num_threads(1)
    case = recipe_cases("dacs")[1]
    settings = settings_of(tmp_path, common_sections(arguments()), case, 5)
    draw_state(settings)
    whole, cut, clock = Runner(settings, case), Runner(settings, case), Clock()
    torch.manual_seed(0)  # dropout
    whole.step()
    torch.manual_seed(0)
    cut_step(clock, cut)
    for one, other in zip(
        whole._training.recipe.modules().values(), cut._training.recipe.modules().values(), strict=True
    ):
        for mine, theirs in zip(one.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-3, atol=1e-6)
    assert all(spent >= 0.0 for spent in clock.medians().values())
    assert sum(name.startswith(MFM) for name in clock.spent) == 9
