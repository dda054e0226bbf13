"""Class lists: names are enough, however they are given; generated colours are stable and can be told apart."""

import re
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jsonschema_rs import Draft202012Validator
from numpy.typing import NDArray

from configs.errors import ConfigError
from configs.load import load_settings
from configs.settings import Settings

OKABE_ITO = [(230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0), (204, 121, 167)]


def _classes(value: Any) -> list[tuple[str, tuple[int, int, int]]]:
    settings = Settings.model_validate({"classes": value, "watch": {"folder": "drop"}})
    return [(item.name, item.color) for item in settings.classes]


@pytest.mark.parametrize(
    "value",
    [
        "background,vessel", " background , vessel ", ["background", "vessel"], ("background", "vessel"),
        [{"name": "background"}, {"name": "vessel"}], [{"name": "background", "color": None}, "vessel"],
        [{"name": "background", "color": [230, 159, 0]}, "vessel"],
    ],
)  # fmt: skip
def test_names_are_enough(value: Any) -> None:
    assert _classes(value) == [("background", OKABE_ITO[0]), ("vessel", OKABE_ITO[1])]


def test_the_environment_takes_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "mfmd.yaml"
    file.write_text("watch: {folder: drop}")
    for text in ("background,vessel", '["background", "vessel"]'):
        monkeypatch.setenv("MFMD_CLASSES", text)
        assert [item.name for item in load_settings(file).classes] == ["background", "vessel"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[no, yes]", "reads this name as False, not as text; put it in quotes"),
        ("[a, on]", "class 1: YAML reads this name as True"),
        ("[a, ~]", "class 1: YAML reads this name as None"),
        ("[{name: off}, b]", "class 0: YAML reads this name as False"),
        ("[1, 2]", "class 0: YAML reads this name as 1"),
        ("[a, 2026-01-01]", "class 1: YAML reads this name as datetime.date"),
        ("[a, [b]]", "class 1: YAML reads this name as ['b']"),
        ("[a, b, a]", "must be unique; twice: a"),
        ("[a, '']", "at least 1 character"),
        ("a,,b", "at least 1 character"),
        ("vessel", "no class list 'vessel'; there are acdc, ade20k, bdd100k, camvid, cityscapes, demo, mapillary, "),
        ("[a]", "at least 2"),
        ("[a, {name: b, color: [1, 2]}]", "classes.1.color"),
        ("[a, {name: b, colour: [1, 2, 3]}]", "unknown key"),
        ("{a: 1, b: 2}", "classes: "),
    ],
)
def test_what_is_no_class_list_is_refused(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "mfmd.yaml"
    file.write_text(f"classes: {text}\nwatch: {{folder: drop}}")
    with pytest.raises(ConfigError) as caught:
        load_settings(file)
    assert says in str(caught.value) and "None" not in str(caught.value).replace("as None", "")


def test_quoted_words_of_yaml_are_names(tmp_path: Path) -> None:
    file = tmp_path / "mfmd.yaml"
    file.write_text("classes: ['no', \"on\", 'null', '1e3']\nwatch: {folder: drop}")
    assert [item.name for item in load_settings(file).classes] == ["no", "on", "null", "1e3"]


def test_colours_are_stable_and_never_those_that_are_given() -> None:
    names = [f"class {number}" for number in range(255)]
    every = [color for _, color in _classes(names)]
    assert len(set(every)) == 255 and every[:7] == OKABE_ITO
    for count in (2, 20, 254):
        assert [color for _, color in _classes(names[:count])] == every[:count]
    given: list[Any] = [{"name": "a", "color": every[1]}, *names[:254]]
    mixed = [color for _, color in _classes(given)]
    assert len(set(mixed)) == 255 and mixed[0] == every[1]


def _seen(colors: Any) -> NDArray[np.float64]:
    """Return CIELAB [4, n, 3]: of the normal eye, protan, deutan and tritan (Machado et al. 2009, severity 1)."""
    linear = np.asarray(colors, float) / 255
    linear = np.where(linear <= 0.04045, linear / 12.92, ((linear + 0.055) / 1.055) ** 2.4)
    eyes = np.array([
        np.eye(3),
        [[.152286, 1.052583, -.204868], [.114503, .786281, .099216], [-.003882, -.048116, 1.051998]],
        [[.367322, .860646, -.227968], [.280085, .672501, .047413], [-.011820, .042940, .968881]],
        [[1.255528, -.076749, -.178779], [-.078411, .930809, .147602], [.004733, .691367, .303900]],
    ])  # fmt: skip
    xyz = np.array(
        [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
    )
    f = np.clip(np.einsum("eij,nj->eni", eyes, linear), 0, 1) @ xyz.T / [0.95047, 1.0, 1.08883]
    f = np.where(f > (6 / 29) ** 3, np.cbrt(f), f / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.stack([116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], -1)


@pytest.mark.parametrize(("count", "least"), [(2, 70), (8, 16), (20, 16), (50, 10), (255, 4)])
def test_colours_are_distinct_to_every_eye(count: int, least: float) -> None:
    """A difference of 2.3 is just noticeable; black is what an ignored pixel shows."""
    seen = _seen([color for _, color in _classes([str(number) for number in range(count)])] + [(0, 0, 0)])
    assert (
        min(np.linalg.norm(seen[:, i] - seen[:, j], axis=-1).min() for i, j in combinations(range(count + 1), 2))
        > least
    )


def test_editors_accept_what_validation_accepts() -> None:
    validator = Draft202012Validator(Settings.model_json_schema())
    for value in ("demo", "a,b", ["a", "b"], [{"name": "a"}, {"name": "b", "color": [1, 2, 3]}]):
        assert validator.is_valid({"classes": value, "watch": {"folder": "drop"}}), value
    for value in ("vessel", [1, 2], ["a"], [{"color": [1, 2, 3]}, "b"]):
        assert not validator.is_valid({"classes": value, "watch": {"folder": "drop"}}), value


@pytest.mark.parametrize(
    ("weights", "says"),
    [
        ("{rod: 1}", "gate.advanced.class_weights: no class 'rod' in `classes`; did you mean 'road'?"),
        ("{road: -1}", "gate.advanced.class_weights.road: Input should be greater"),
        ("{road: 0, sky: 0}", "gate.advanced.class_weights: every class has weight 0"),
    ],
)
def test_weights_of_classes_are_checked(tmp_path: Path, weights: str, says: str) -> None:
    path = tmp_path / "mfmd.yaml"
    path.write_text(
        f"classes: [road, sky]\nwatch: {{folder: drop}}\ngate: {{advanced: {{class_weights: {weights}}}}}\n"
    )
    with pytest.raises(ConfigError, match=re.escape(says)):
        load_settings(path)
