"""The two conditions of the demo: what stands in the street, how it is painted, and how it is lit."""

from dataclasses import dataclass

from daemon.demo.drawing.canvas import Color

Range = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Content:
    """How much of what stands in a street; ranges are (low, high) of a uniform draw."""

    road_half: Range
    """Half width of the carriageway (metres)."""
    pavement: Range
    """Width of each pavement (metres)."""
    building_height: Range
    """Height of buildings (metres)."""
    gap: float
    """Probability that a building plot is empty (0-1)."""
    tree_spacing: Range
    """Distance between trees on a side (metres)."""
    pole_spacing: Range
    """Distance between poles on a side (metres)."""
    parked: float
    """Probability that a parking place is taken (0-1)."""
    traffic: Range
    """Cars that drive in the street."""
    people: Range
    """People in the street."""
    crossing: float
    """Probability of a zebra crossing (0-1)."""


@dataclass(frozen=True, slots=True)
class Paint:
    """Colours of surfaces (RGB, 0-1); one of the list is drawn for each thing."""

    asphalt: tuple[Color, ...]
    slabs: tuple[Color, ...]
    marks: Color
    facades: tuple[Color, ...]
    glass: Color
    roofs: tuple[Color, ...]
    leaves: tuple[Color, ...]
    trunk: Color
    cars: tuple[Color, ...]
    clothes: tuple[Color, ...]
    pole: Color
    cobbled: bool
    """Small setts instead of slabs on the pavements, worn lane marks."""


@dataclass(frozen=True, slots=True)
class Weather:
    """Light and air."""

    zenith: tuple[Color, ...]
    """Colour of the sky overhead; one is drawn."""
    skyline: tuple[Color, ...]
    """Colour of the sky at the horizon; one is drawn."""
    clouds: Color
    """Colour of clouds."""
    ambient: Color
    """Light that falls on every surface (RGB)."""
    sun: float
    """How much brighter the sunny side is (0-1); also how deep shadows are."""
    haze: Color
    """Colour of fog."""
    visibility: Range
    """Distance at which fog has taken 63 % of the contrast (metres)."""
    wet: float
    """Share of light that the road mirrors (0-1)."""
    lamps: bool
    """Windows, lamps and head lights are on."""
    noise: Range
    """Sensor noise in mid grey (standard deviation, 0-1)."""
    exposure: Range
    """Factor on the whole picture."""


@dataclass(frozen=True, slots=True)
class Condition:
    """One camera's world."""

    name: str
    code: int
    """Part of every scene's seed, so that conditions never share a street."""
    content: Content
    paint: Paint
    weather: Weather


DAY = Condition(
    name="day",
    code=1,
    content=Content(
        road_half=(3.4, 4.6),
        pavement=(2.2, 3.6),
        building_height=(5.0, 13.0),
        gap=0.25,
        tree_spacing=(7.0, 18.0),
        pole_spacing=(12.0, 24.0),
        parked=0.35,
        traffic=(1, 4),
        people=(2, 8),
        crossing=0.25,
    ),
    paint=Paint(
        asphalt=((0.44, 0.44, 0.45), (0.50, 0.49, 0.48), (0.40, 0.41, 0.43)),
        slabs=((0.66, 0.63, 0.58), (0.60, 0.59, 0.57), (0.68, 0.60, 0.54)),
        marks=(0.93, 0.93, 0.90),
        facades=(
            (0.82, 0.72, 0.58),
            (0.70, 0.42, 0.34),
            (0.86, 0.82, 0.74),
            (0.78, 0.60, 0.46),
            (0.62, 0.50, 0.44),
            (0.88, 0.78, 0.54),
        ),
        glass=(0.30, 0.40, 0.50),
        roofs=((0.56, 0.30, 0.24), (0.42, 0.36, 0.36), (0.50, 0.26, 0.20)),
        leaves=((0.28, 0.46, 0.18), (0.36, 0.52, 0.22), (0.22, 0.40, 0.20)),
        trunk=(0.36, 0.27, 0.20),
        cars=(
            (0.78, 0.12, 0.12),
            (0.92, 0.92, 0.92),
            (0.14, 0.26, 0.58),
            (0.16, 0.16, 0.18),
            (0.62, 0.64, 0.66),
            (0.86, 0.70, 0.18),
        ),
        clothes=((0.72, 0.18, 0.20), (0.18, 0.28, 0.58), (0.90, 0.86, 0.78), (0.20, 0.44, 0.34), (0.82, 0.54, 0.20)),
        pole=(0.42, 0.44, 0.46),
        cobbled=False,
    ),
    weather=Weather(
        zenith=((0.30, 0.52, 0.84), (0.36, 0.58, 0.86), (0.42, 0.58, 0.80)),
        skyline=((0.80, 0.88, 0.95), (0.86, 0.90, 0.94)),
        clouds=(0.97, 0.97, 0.98),
        ambient=(1.0, 0.98, 0.94),
        sun=0.28,
        haze=(0.80, 0.87, 0.94),
        visibility=(350.0, 700.0),
        wet=0.0,
        lamps=False,
        noise=(0.006, 0.014),
        exposure=(0.92, 1.08),
    ),
)
"""The source: a bright day in a small town; these scenes come with labels."""

DUSK = Condition(
    name="dusk",
    code=2,
    content=Content(
        road_half=(3.2, 4.2),
        pavement=(1.8, 3.0),
        building_height=(7.0, 18.0),
        gap=0.18,
        tree_spacing=(9.0, 24.0),
        pole_spacing=(10.0, 20.0),
        parked=0.5,
        traffic=(2, 5),
        people=(1, 6),
        crossing=0.15,
    ),
    paint=Paint(
        asphalt=((0.36, 0.37, 0.40), (0.32, 0.33, 0.36)),
        slabs=((0.50, 0.48, 0.48), (0.46, 0.44, 0.42)),
        marks=(0.74, 0.74, 0.72),
        facades=(
            (0.52, 0.46, 0.44),
            (0.58, 0.40, 0.34),
            (0.60, 0.58, 0.56),
            (0.46, 0.42, 0.46),
            (0.66, 0.60, 0.52),
        ),
        glass=(0.16, 0.20, 0.28),
        roofs=((0.30, 0.26, 0.28), (0.34, 0.24, 0.22)),
        leaves=((0.44, 0.38, 0.18), (0.30, 0.36, 0.20), (0.50, 0.34, 0.18)),
        trunk=(0.28, 0.23, 0.20),
        cars=((0.52, 0.12, 0.14), (0.74, 0.75, 0.76), (0.14, 0.20, 0.40), (0.12, 0.12, 0.14), (0.42, 0.44, 0.46)),
        clothes=((0.34, 0.34, 0.40), (0.66, 0.20, 0.20), (0.22, 0.32, 0.58), (0.82, 0.78, 0.68)),
        pole=(0.30, 0.31, 0.33),
        cobbled=True,
    ),
    weather=Weather(
        zenith=((0.20, 0.26, 0.42), (0.26, 0.30, 0.44)),
        skyline=((0.62, 0.50, 0.50), (0.54, 0.52, 0.58), (0.66, 0.56, 0.48)),
        clouds=(0.44, 0.42, 0.50),
        ambient=(0.62, 0.66, 0.80),
        sun=0.06,
        haze=(0.47, 0.48, 0.55),
        visibility=(70.0, 140.0),
        wet=0.36,
        lamps=True,
        noise=(0.015, 0.032),
        exposure=(0.90, 1.10),
    ),
)
"""The target: a foggy, wet autumn dusk in the old town; the daemon never sees its labels."""
