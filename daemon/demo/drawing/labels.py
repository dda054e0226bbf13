"""The classes of the drawn scenes, in the order of `configs/class_lists/demo.yaml`."""

from enum import IntEnum


class Label(IntEnum):
    """Index of each class in label images."""

    SKY = 0
    BUILDING = 1
    TREE = 2
    ROAD = 3
    PAVEMENT = 4
    CAR = 5
    POLE = 6
    PERSON = 7
