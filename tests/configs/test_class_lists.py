"""The class lists that ship: as many classes as published, each with its own name and colour, at the known places."""

from configs.class_list import load_class_list, shipped
from configs.settings import Settings

CLASSES = {
    "acdc": 19, "ade20k": 150, "bdd100k": 19, "camvid": 11, "cityscapes": 19, "demo": 8, "mapillary": 65,
    "pascal_context": 59, "voc": 21,
}  # fmt: skip
PLACES = {
    "ade20k": {0: "wall", 6: "road", 7: "bed", 12: "person", 20: "car", 80: "bus", 127: "bicycle", 149: "flag"},
    "mapillary": {0: "Bird", 13: "Road", 27: "Sky", 45: "Pole", 55: "Car", 64: "Ego Vehicle"},
    "pascal_context": {0: "aeroplane", 22: "dog", 36: "person", 40: "road", 58: "wood"},
    "voc": {0: "background", 1: "aeroplane", 15: "person", 20: "tvmonitor"},
}
"""Classes whose numbers are well known; one line too many or too few would move them."""
COLORS = {
    ("ade20k", 0): (120, 120, 120), ("ade20k", 6): (140, 140, 140), ("ade20k", 149): (92, 0, 255),
    ("mapillary", 27): (70, 130, 180), ("mapillary", 64): (120, 10, 10),
    ("voc", 0): (0, 0, 0), ("voc", 15): (192, 128, 128), ("voc", 20): (0, 64, 128),
}  # fmt: skip


def test_every_list_is_whole_and_each_name_and_colour_stands_once() -> None:
    assert set(shipped("class_lists")) == CLASSES.keys()
    for name, count in CLASSES.items():
        classes = Settings.model_validate({"classes": name, "watch": {"folder": "drop"}}).classes
        assert len(classes) == count, name
        assert len({item.name.casefold() for item in classes}) == count, name
        assert len({item.color for item in classes}) == count, f"{name}: a colour mask could not be read back"
        assert all(item.name == item.name.strip() for item in classes), name


def test_classes_stand_at_their_published_numbers() -> None:
    for name, places in PLACES.items():
        entries = load_class_list(name)
        assert {index: entries[index]["name"] for index in places} == places
    for (name, index), color in COLORS.items():
        assert load_class_list(name)[index]["color"] == [*color]


def test_lists_of_the_same_classes_agree() -> None:
    assert load_class_list("acdc") == load_class_list("bdd100k") == load_class_list("cityscapes")
    context = {entry["name"] for entry in load_class_list("pascal_context")}
    voc = {entry["name"] for entry in load_class_list("voc")}
    assert voc - context == {"background", "diningtable"} and "table" in context


def test_each_says_how_label_values_are_read() -> None:
    for name in CLASSES.keys() - {"demo"}:
        comment = shipped("class_lists")[name].read_text(encoding="utf-8").partition("\n- ")[0]
        assert "255" in comment or "source.label" in comment, name
