"""Classes of a model are ours at every index, or the import says which are not; case and separators do not count."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from adapters.checkpoints.class_names import check_classes
from adapters.checkpoints.importing import import_checkpoint
from adapters.errors import AdapterError, NetworkMismatch, UnsupportedModel
from configs.settings import Settings
from storage.registry.registry import CheckpointRegistry

OURS = ["sky", "building", "traffic light", "road", "straße"]
SAME = {
    "as they are": OURS,
    "upper case": [name.upper() for name in OURS],
    "spaces around": [f" {name} " for name in OURS],
    "underscore": ["sky", "building", "traffic_light", "road", "strasse"],
    "hyphen": ["sky", "building", "Traffic-Light", "road", "straße"],
    "in one word": ["sky", "building", "trafficlight", "road", "straße"],
    "full width": ["ｓｋｙ", "building", "traffic light", "road", "straße"],
}
MOVED = {
    "two exchanged": ["building", "sky", "traffic light", "road", "straße"],
    "all turned": ["road", "traffic light", "building", "sky", "straße"],
    "one of them spelled otherwise": ["road", "traffic lamp", "building", "sky", "straße"],
    "one of them with a space": [" road", "traffic lamp", "building", "sky", "straße"],
    "one of them in upper case": ["road", "TRAFFIC LAMP", "BUILDING", "SKY", "STRASSE"],
    "one twice": ["sky", "sky", "traffic light", "road", "straße"],
    "shifted by one": ["void", "sky", "building", "traffic light", "road"],
}
RENAMED = {
    "one": ["sky", "house", "traffic light", "road", "straße"],
    "all": ["Himmel", "Haus", "Ampel", "Fahrbahn", "Weg"],
    "an empty one": ["sky", "", "traffic light", "road", "straße"],
}
UNNAMED: dict[str, dict[str, Any]] = {
    "no field": {},
    "null": {"id2label": None},
    "no entry": {"id2label": {}},
    "generic": {"id2label": {str(index): f"LABEL_{index}" for index in range(5)}},
    "numbers": {"id2label": {str(index): index for index in range(5)}},
}


def check(names: list[str], *, by_position: bool = False) -> list[str]:
    notes: list[str] = []
    config = {"id2label": {str(index): name for index, name in enumerate(names)}}
    check_classes(config, OURS, by_position=by_position, note=notes.append)
    return notes


@pytest.mark.parametrize("names", SAME.values(), ids=SAME)
def test_the_same_names_are_accepted(names: list[str]) -> None:
    assert check(names) == []


@pytest.mark.parametrize("by_position", [False, True])
@pytest.mark.parametrize("names", MOVED.values(), ids=MOVED)
def test_another_order_is_refused_however_they_are_spelled(names: list[str], by_position: bool) -> None:
    with pytest.raises(NetworkMismatch, match="another order") as caught:
        check(names, by_position=by_position)
    place = next(index for index, name in enumerate(names) if name.strip().casefold() != OURS[index].casefold())
    assert f"{place}: {names[place]!r} | {OURS[place]!r}" in str(caught.value)


@pytest.mark.parametrize("names", RENAMED.values(), ids=RENAMED)
def test_other_words_are_accepted_only_by_position(names: list[str]) -> None:
    with pytest.raises(NetworkMismatch, match="--classes-by-position"):
        check(names)
    assert f"1 {names[1]!r} as 'building'" in check(names, by_position=True)[0]


@pytest.mark.parametrize("config", UNNAMED.values(), ids=UNNAMED)
def test_a_model_without_names_is_taken_in_our_order_and_said(config: dict[str, Any]) -> None:
    notes: list[str] = []
    check_classes(config, OURS, by_position=False, note=notes.append)
    assert len(notes) == 1 and "does not name" in notes[0]


def test_keys_may_be_numbers_or_text_in_any_order() -> None:
    for keys in (range(5), map(str, range(5)), ["4", "0", "1", "2", "3"]):
        labels = {key: OURS[int(key)] for key in keys}
        notes: list[str] = []
        check_classes({"id2label": labels}, OURS, by_position=False, note=notes.append)
        assert not notes, keys


@pytest.mark.parametrize(
    ("labels", "reason"),
    [
        ({"a": "sky"}, "class numbers"),
        ("sky", "class numbers"),
        ({"0": "sky", "2": "road"}, "none for class 1; number them 0, 1, 2"),
        ({"1": "sky", "2": "road"}, "none for class 0"),
        ({"0": "sky", "00": "road"}, "none for class 1"),
        ({"0": "sky", "1": None}, "gives class 1 the name null; text"),
        (["sky", ["road"]], r'gives class 1 the name \["road"\]; text'),
        ({"0": "sky", "1": True}, "gives class 1 the name true; text"),
    ],
)
def test_labels_that_do_not_count_from_0_are_refused(labels: object, reason: str) -> None:
    with pytest.raises(UnsupportedModel, match=reason):
        check_classes({"id2label": labels}, OURS, by_position=True, note=pytest.fail)


@pytest.mark.parametrize("names", [OURS[:-1], [*OURS, "more"]])
def test_more_or_fewer_are_refused_with_the_remedy_and_both_lists(names: list[str]) -> None:
    says = rf"{len(names)} .*lists 5; give `classes` .*order \(`mfmd init --from-model MODEL` .*'sky'.*'sky'"
    with pytest.raises(NetworkMismatch, match=says):
        check(names, by_position=True)


def test_an_import_refuses_and_registers_nothing(
    saved: Path, configure: Callable[..., None], settings: Settings, registry: CheckpointRegistry
) -> None:
    names = [entry.name for entry in reversed(settings.classes)]
    names[3] = "side_walk"
    configure(id2label={str(index): name for index, name in enumerate(names)})
    with pytest.raises(AdapterError, match="another order"):
        import_checkpoint(saved, settings, registry)
    assert registry.versions() == []
