"""The two conditions of the demo: what stands in the street, how it is painted, and how it is lit."""

from dataclasses import dataclass

Color = tuple[float, float, float]
Range = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Condition:
    """One camera's world. Ranges are (low, high) of a uniform draw; colours are RGB (0-1), of a list one is drawn."""

    name: str
    code: int  # part of every scene's seed: conditions never share a street
    road: Range  # half width of the carriageway (metres)
    pavement: Range  # width of each pavement (metres)
    house: Range  # height (metres)
    gap: float  # probability that a plot is empty
    trees: Range  # distance between trees (metres)
    poles: Range  # distance between poles (metres)
    parked: float  # probability that a parking place is taken
    traffic: tuple[int, int]  # cars that drive
    people: tuple[int, int]
    asphalt: tuple[Color, ...]
    slabs: tuple[Color, ...]
    marks: Color
    facades: tuple[Color, ...]
    glass: Color
    leaves: tuple[Color, ...]
    cars: tuple[Color, ...]
    clothes: tuple[Color, ...]
    zenith: Color  # sky overhead
    skyline: Color  # sky at the horizon
    clouds: Color
    ambient: Color  # light on every surface
    sun: float  # how much darker the shaded side and shadows are (0-1)
    haze: Color  # fog
    visibility: Range  # distance at which fog has taken 63 % of the contrast (metres)
    lamps: bool  # windows, street lamps and head lights are on
    noise: Range  # sensor noise in mid grey (standard deviation, 0-1)


DAY = Condition(
    name="day", code=1, road=(3.4, 4.6), pavement=(2.2, 3.6), house=(5, 13), gap=0.25, trees=(7, 18), poles=(9, 18),
    parked=0.35, traffic=(1, 4), people=(3, 9),
    asphalt=((0.44, 0.44, 0.45), (0.50, 0.49, 0.48), (0.40, 0.41, 0.43)),
    slabs=((0.66, 0.63, 0.58), (0.60, 0.59, 0.57), (0.68, 0.60, 0.54)),
    marks=(0.93, 0.93, 0.90),
    facades=((0.82, 0.72, 0.58), (0.70, 0.42, 0.34), (0.86, 0.82, 0.74), (0.62, 0.50, 0.44), (0.88, 0.78, 0.54)),
    glass=(0.30, 0.40, 0.50),
    leaves=((0.28, 0.46, 0.18), (0.36, 0.52, 0.22), (0.22, 0.40, 0.20)),
    cars=((0.78, 0.12, 0.12), (0.92, 0.92, 0.92), (0.14, 0.26, 0.58), (0.16, 0.16, 0.18), (0.86, 0.70, 0.18)),
    clothes=((0.72, 0.18, 0.20), (0.18, 0.28, 0.58), (0.90, 0.86, 0.78), (0.20, 0.44, 0.34), (0.82, 0.54, 0.20)),
    zenith=(0.36, 0.57, 0.84), skyline=(0.84, 0.89, 0.94), clouds=(0.97, 0.97, 0.98), ambient=(1.0, 0.98, 0.94),
    sun=0.28, haze=(0.80, 0.87, 0.94), visibility=(350, 700), lamps=False, noise=(0.006, 0.014),
)  # fmt: skip
"""The source: a bright day in a small town; these scenes come with labels."""

DUSK = Condition(
    name="dusk", code=2, road=(3.2, 4.2), pavement=(1.8, 3.0), house=(7, 18), gap=0.18, trees=(9, 24), poles=(8, 16),
    parked=0.5, traffic=(2, 5), people=(2, 7),
    asphalt=((0.36, 0.37, 0.40), (0.32, 0.33, 0.36)),
    slabs=((0.50, 0.48, 0.48), (0.46, 0.44, 0.42)),
    marks=(0.74, 0.74, 0.72),
    facades=((0.52, 0.46, 0.44), (0.58, 0.40, 0.34), (0.60, 0.58, 0.56), (0.46, 0.42, 0.46), (0.66, 0.60, 0.52)),
    glass=(0.16, 0.20, 0.28),
    leaves=((0.44, 0.38, 0.18), (0.30, 0.36, 0.20), (0.50, 0.34, 0.18)),
    cars=((0.52, 0.12, 0.14), (0.74, 0.75, 0.76), (0.14, 0.20, 0.40), (0.12, 0.12, 0.14), (0.42, 0.44, 0.46)),
    clothes=((0.34, 0.34, 0.40), (0.66, 0.20, 0.20), (0.22, 0.32, 0.58), (0.82, 0.78, 0.68)),
    zenith=(0.23, 0.28, 0.43), skyline=(0.61, 0.53, 0.52), clouds=(0.44, 0.42, 0.50), ambient=(0.62, 0.66, 0.80),
    sun=0.06, haze=(0.47, 0.48, 0.55), visibility=(70, 140), lamps=True, noise=(0.015, 0.032),
)  # fmt: skip
"""The target: a foggy autumn dusk in the old town; the daemon never sees its labels."""
