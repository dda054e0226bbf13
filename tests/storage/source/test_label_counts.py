"""What labels hold is shown, what cannot be meant is refused with the setting that would fit, the rest is a warning."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from configs.settings import Settings
from storage.errors import SourceRefused
from storage.layout import StateLayout
from storage.source.label_survey import LabelSurvey
from storage.source.labelled import LabelledSet
from storage.source.labelled_import import import_labelled, label_map_of

World = Callable[..., Settings]


@pytest.fixture
def world(tmp_path: Path) -> World:
    """Settings with one 8x8 image a label, whose rows hold the given values."""

    def make(names: list[str], *labels: list[int] | np.ndarray, **source: object) -> Settings:
        for folder in ("images", "labels"):
            (tmp_path / folder).mkdir(exist_ok=True)
        for number, values in enumerate(labels):
            pixels = values if isinstance(values, np.ndarray) else np.resize(np.array(values, np.uint8), (8, 8))
            Image.new("RGB", (8, 8)).save(tmp_path / "images" / f"{number}.jpg")
            Image.fromarray(pixels).save(tmp_path / "labels" / f"{number}.png")
        classes = [{"name": name, "color": (index, 0, 0)} for index, name in enumerate(names)]
        folders = {"images": tmp_path / "images", "labels": tmp_path / "labels"}
        return Settings.model_validate({
            "state": tmp_path / "state", "classes": classes, "watch": {"folder": tmp_path / "drop"},
            "buffer": {"height": 32, "width": 32}, "source": {**folders, **source},
        })  # fmt: skip

    return make


NEW_KEYS = ("label_format", "label_map", "label_values")
"""Keys of `index.json` that older sets do not have."""
CITYSCAPES = ["road", "sidewalk", "building", "wall", "fence", "pole", "vegetation", "sky", "car"]


@pytest.mark.parametrize(
    ("names", "labels", "words"),
    [
        (["background", "vessel"], [[0, 255]], "source.label_map: {0: background, 255: vessel}"),
        (["background", "vessel"], [[0], [255]], "source.label_map: {0: background, 255: vessel}"),
        (["a", "b", "c"], [[0, 128, 255]], "source.label_map: {0: a, 128: b, 255: c}"),
        (["a", "b"], [[1, 2]], "source.label_map: {1: a, 2: b}"),
        (["a", "b", "c"], [[0, 1, 2, 3]], "label_format: ade20k reads 1 as the first class and ignores 0"),
        (["a", "b", "c"], [[0, 255]], "all that is not ignored is 'a'"),
        (CITYSCAPES, [[7, 8, 11, 33]], "label_format: cityscapes_ids"),
        (["a", "b"], [[255], [255]], "no label holds a pixel of any class"),
        (["a", "b"], [[0, 1, 77]], "hold the values 0, 1, 77; source.label_map"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_what_would_fit(
    world: World, layout: StateLayout, names: list[str], labels: list[list[int]], words: str
):
    settings = world(names, *labels)
    for look in (LabelSurvey, lambda settings: import_labelled(settings, layout)):
        with pytest.raises(SourceRefused) as caught:
            look(settings)
        assert words in str(caught.value)
    assert not LabelledSet.exists(layout)


def test_the_mapping_that_was_named_makes_it_work(world: World, layout: StateLayout):
    settings = world(["background", "vessel"], [0, 255], label_map={0: "background", 255: 1})
    found = import_labelled(settings, layout)
    assert found.class_pixels.sum(axis=0).tolist() == [512, 512]
    counts = found.counts(label_map_of(settings))
    assert counts.warnings() == [] and counts.rows() == [("0", "background", 32), ("255", "vessel", 32)]


def test_the_table_tells_odd_ones_first_and_fits_on_a_screen(world: World):
    counts = LabelSurvey(world(["road", "sky", "car"], [0, 1, 0, 255], [0, 0, 1, 1])).counts
    assert counts.rows() == [("-", "car", 0), ("0", "road", 64), ("1", "sky", 48), ("255", "ignored", 16)]
    assert counts.lines() == [
        "value    share  class",
        "    -   0.00 %  car",
        "    0  50.00 %  road",
        "    1  37.50 %  sky",
        "  255  12.50 %  ignored",
    ]
    assert counts.warnings() == ["no label holds a pixel of car: no model learns what it never sees"]
    many = LabelSurvey(world([f"class {number}" for number in range(200)], [0, 199])).counts
    assert [line.split()[0] for line in many.lines()[1:5]] == ["0", "1", "199", "-"], "what is there comes first"
    assert len(many.lines()) == 26 and "and 176 more" in many.lines()[-1]
    assert len(many.warnings()[0]) < 300


def test_a_sample_is_not_taken_for_the_whole(world: World, monkeypatch: pytest.MonkeyPatch):
    """What most labels do not hold may be in the rest; a value without a meaning is wrong in any case."""
    monkeypatch.setattr("storage.source.label_survey.SAMPLE", 1)
    told = LabelSurvey(world(["background", "lesion"], [0, 255], [0, 1])).counts.warnings()
    assert "{0: background, 255: lesion}" in told[0] and "no label of those that were read" in told[1]
    with pytest.raises(SourceRefused, match="label value 7"):
        LabelSurvey(world(["background", "lesion"], [0, 7], [0, 1]))


def test_a_class_that_only_held_out_labels_hold_is_told(world: World, layout: StateLayout):
    settings = world(["a", "b", "c"], [0, 1], [0, 1], [0, 1], [0, 1])
    (held,) = import_labelled(settings, layout).validation
    settings = world(["a", "b", "c"], *([0, 2 if number == held else 1] for number in range(4)))
    told = import_labelled(settings, layout).counts(label_map_of(settings)).warnings()
    assert told == ["only held-out images hold c: no model learns what it never sees"]


def test_a_photograph_taken_for_a_label_costs_little(world: World):
    noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3), np.uint8)
    with pytest.raises(SourceRefused) as caught:
        LabelSurvey(world(["a", "b"], noise, noise[::-1], label_format="rgb"))
    assert "2 problems" in str(caught.value) and len(str(caught.value)) < 2000


def test_labels_of_no_class_are_named(world: World):
    warned = LabelSurvey(world(["a", "b"], [0, 1], [255])).counts.warnings()
    assert warned == ["labels without a pixel of any class: 1.jpg"]


def test_indices_of_different_palettes_are_not_compared(world: World, tmp_path: Path):
    settings = world(["a", "b"], [0, 1], [0, 1])
    for number, colors in enumerate(([0, 0, 0, 255, 0, 0], [255, 0, 0, 0, 0, 0])):
        image = Image.open(tmp_path / "labels" / f"{number}.png").convert("P")
        image.putpalette(colors)
        image.save(tmp_path / "labels" / f"{number}.png")
    (told,) = LabelSurvey(settings).counts.warnings()
    assert "1.jpg: palette index 0 has the colour (255, 0, 0) here, (0, 0, 0) in 0.jpg" in told
    with pytest.raises(SourceRefused, match="palette index 0"):
        LabelSurvey(world(["a", "b"], label_format="palette"))


def test_settings_that_cannot_be_meant_are_refused_by_name(world: World):
    for source, words in (
        ({"ignore_index": 1}, "source.ignore_index: 1 is the class 'b'; set 2 or more"),
        ({"label_map": {0: "bb"}}, "source.label_map: 0: no class 'bb' in `classes`; did you mean 'b'?"),
        ({"label_map": {0: 2}}, "no class 2"),
        ({"label_map": {0: False}}, "0: False is no class; give its name"),
        ({"label_map": {0: ["a"]}}, "0: ['a'] is no class"),
        ({"label_map": ["a"]}, "valid dictionary"),
        ({"label_map": {-1: "a"}}, "no label value"),
        ({"label_map": {"1,2": "a"}}, "no label value"),
        ({"label_map": {True: "a"}}, "no label value"),
        ({"label_map": {10**30: "a"}}, "no label value"),
        ({"label_map": {"1,2,300": "a"}, "label_format": "rgb"}, "no colour"),
        ({"label_map": {0: "a", "0": "b"}}, "stands twice"),
        ({"label_map": {"1,2,3": "a"}}, "label_format index has label values"),
        ({"label_map": {7: "a"}, "label_format": "rgb"}, "label_format rgb has colours"),
    ):
        with pytest.raises(ValidationError) as caught:
            world(["a", "b"], **source)
        assert words in str(caught.value)


def test_two_classes_of_one_colour_cannot_be_read_by_colour(world: World):
    settings = world(["a", "b"], [0, 1], label_format="rgb")
    twin = settings.classes[0].model_copy(update={"name": "b"})
    with pytest.raises(SourceRefused, match="classes 'a' and 'b' have one colour"):
        LabelSurvey(settings.model_copy(update={"classes": (settings.classes[0], twin)}))


def test_settings_survive_the_record_of_a_round(world: World):
    settings = world(["a", "b"], [0, 1], label_map={"#102030": "a", "1,2,3": None}, label_format="rgb")
    assert Settings.model_validate(settings.model_dump(mode="json")) == settings
    assert Settings.model_validate_json(settings.model_dump_json()) == settings


def test_a_set_read_with_another_meaning_is_noticed(world: World, layout: StateLayout):
    settings = world(["a", "b"], [0, 1, 255])
    found = import_labelled(settings, layout)
    assert found.read_as(settings) and LabelledSet.open(layout).read_as(settings)
    assert not found.read_as(world(["b", "a"]))
    assert not found.read_as(world(["a", "b"], label_map={0: "b", 1: "a"}))
    assert not found.read_as(world(["a", "b"], ignore_index=254))
    assert found.read_as(world(["a", "b"], label_suffix="_x")), "a name says nothing about a meaning"


def test_a_set_of_an_older_mfmd_stays_in_use(world: World, layout: StateLayout):
    settings = world(["a", "b", "c"], [0, 1, 255])
    found = import_labelled(settings, layout)
    index = next(layout.source.glob("*/index.json"))
    old = {key: value for key, value in json.loads(index.read_text()).items() if key not in NEW_KEYS}
    index.write_text(json.dumps(old))
    again = import_labelled(settings, layout, lambda *_: pytest.fail("imported again"))
    assert again.read_as(settings) and again.names == found.names
    rows = again.counts(label_map_of(settings)).rows()
    assert [row[:2] for row in rows] == [("-", "c"), ("0", "a"), ("1", "b")]
