"""Rows of houses along both sides of the street."""

from dataclasses import dataclass

import numpy as np

from daemon.demo.conditions import Condition
from daemon.demo.drawing.camera import Floats
from daemon.demo.drawing.canvas import Canvas, Color, tinted
from daemon.demo.drawing.ground import Street
from daemon.demo.drawing.labels import Label
from daemon.demo.drawing.texture import cells, grain, stripes

END = 95.0
"""Houses are drawn up to here (metres)."""
WARM: tuple[Color, ...] = ((1.0, 0.78, 0.42), (1.0, 0.86, 0.58), (0.95, 0.70, 0.34), (0.85, 0.88, 0.80))
"""Colours of lit windows."""


@dataclass(frozen=True, slots=True)
class House:
    """One house: a box from `start` to `end` along the street (metres)."""

    side: int
    wall: float
    start: float
    end: float
    height: float
    color: Color
    roof: Color
    roof_height: float
    """Height of the pitched roof (metres); 0 is flat."""
    storey: float
    """Height of a storey (metres)."""
    bay: float
    """Width of a window bay (metres)."""
    window: float
    """Share of a bay that is glass (0-1)."""
    bricks: bool
    shift: int
    """Place in the noise table, so that no two houses look alike."""
    lit: float
    """Share of windows with the light on (0-1)."""


def draw_houses(canvas: Canvas, street: Street, condition: Condition, rng: np.random.Generator, sunny: int) -> None:
    """Both rows; `sunny` is the side (-1, 1) that the sun shines on."""
    for side in (-1, 1):
        start = float(rng.uniform(1.0, 6.0))
        while start < END:
            end = start + float(rng.uniform(5.0, 13.0))
            if rng.random() >= condition.content.gap:
                house = _house(street, side, start, end, condition, rng)
                _draw_house(canvas, house, condition, 1.0 if side == sunny else 1.0 - condition.weather.sun)
            start = end + (0.0 if rng.random() < 0.75 else float(rng.uniform(1.0, 4.0)))


def _house(
    street: Street, side: int, start: float, end: float, condition: Condition, rng: np.random.Generator
) -> House:
    paint = condition.paint
    low, high = condition.content.building_height
    return House(
        side=side,
        wall=street.wall(side) + side * float(rng.choice([0.0, 0.0, 0.4, 1.5])),
        start=start,
        end=end,
        height=float(rng.uniform(low, high)),
        color=tinted(paint.facades[rng.integers(len(paint.facades))], float(rng.uniform(0.9, 1.1))),
        roof=paint.roofs[rng.integers(len(paint.roofs))],
        roof_height=float(rng.choice([0.0, 2.2, 3.0])),
        storey=float(rng.uniform(2.8, 3.5)),
        bay=float(rng.uniform(1.8, 3.0)),
        window=float(rng.uniform(0.38, 0.6)),
        bricks=bool(rng.random() < 0.5),
        shift=int(rng.integers(500)),
        lit=float(rng.uniform(0.1, 0.45)) if condition.weather.lamps else 0.0,
    )


def _draw_house(canvas: Canvas, house: House, condition: Condition, brightness: float) -> None:
    _draw_long_wall(canvas, house, condition, brightness)
    _draw_gable(canvas, house, condition, brightness * 0.82)
    if house.roof_height:
        inner = house.wall + house.side * 4.0
        top = house.height + house.roof_height
        eave, overhang = house.wall - house.side * 0.3, max(house.start, 0.6)
        corners = [(eave, house.height, overhang), (eave, house.height, house.end), (inner, top, house.end)]
        corners.append((inner, top, overhang))
        canvas.solid(corners, tinted(house.roof, brightness), house.end - 0.01, Label.BUILDING)


def _draw_long_wall(canvas: Canvas, house: House, condition: Condition, brightness: float) -> None:
    """The wall along the street, the plane x = wall."""
    camera = canvas.camera
    near = max(house.start, 0.6)
    ends = sorted((camera.column(house.wall, near), camera.column(house.wall, house.end)))
    window = canvas.window(ends[0], 0, ends[1], camera.height)
    if window is None:
        return
    right = camera.right(window[1])
    z = house.wall / np.where(right * house.side > 1e-4, right, house.side * 1e-4)
    y = camera.eye + camera.up(window[0]) * z
    z = np.broadcast_to(z, y.shape)
    mask = (z >= near) & (z < house.end) & (y >= 0) & (y < house.height)
    visible = canvas.visible(window, mask, z)
    color, light = _facade((z - house.start)[visible], y[visible], house, condition)
    canvas.paint(window, visible, color * brightness, z, Label.BUILDING, light)


def _draw_gable(canvas: Canvas, house: House, condition: Condition, brightness: float) -> None:
    """The wall that faces the camera, the plane z = start; seen where the next house is lower or missing."""
    camera, z = canvas.camera, house.start
    outer = house.wall + house.side * 9.0
    sides = sorted((camera.column(house.wall, z), camera.column(outer, z)))
    top = house.height + house.roof_height
    window = canvas.window(sides[0], camera.row(top, z), sides[1], camera.row(0, z))
    if window is None:
        return
    across = (camera.right(window[1]) * z - house.wall) * house.side
    y = camera.eye + camera.up(window[0]) * z
    slope = house.height + house.roof_height * np.clip(across / 4.0, 0, 1)
    mask = (across >= 0) & (y >= 0) & (y < slope)
    visible = canvas.visible(window, mask, z)
    rows, columns = np.nonzero(visible)
    color, light = _facade(across[0, columns], y[rows, 0], house, condition)
    canvas.paint(window, visible, color * brightness, z, Label.BUILDING, light)


def _facade(along: Floats, y: Floats, house: House, condition: Condition) -> tuple[Floats, Floats]:
    """Colour and light [n, 3] of a wall at n points, `along` metres from its edge and `y` metres up, both [n]."""
    color = np.tile(np.array(house.color, np.float32), (len(y), 1))
    speck = (grain(along, y, 0.22 if house.bricks else 0.6, house.shift) - 0.5) * (0.10 if house.bricks else 0.05)
    if house.bricks:
        speck -= 0.05 * stripes(y, 0.30, 0.25)
    color += speck[..., None]
    color[stripes(y, house.storey, 0.05) & (y > 1)] *= 0.86
    color[(y > house.height - 0.45) & (y <= house.height)] *= 0.72
    bay, floor = cells(along, house.bay, house.shift), cells(y, house.storey, house.shift)
    in_bay = np.abs(np.mod(along, house.bay) / house.bay - 0.5)
    in_floor = np.mod(y, house.storey) / house.storey
    shop = y < house.storey
    half = np.where(shop, 0.42, house.window / 2)
    glass = (in_bay < half) & (in_floor > np.where(shop, 0.08, 0.28)) & (in_floor < 0.82) & (y < house.height - 0.5)
    frame = (in_bay < half + 0.05) & (in_floor > 0.22) & (in_floor < 0.87) & ~glass & (y < house.height - 0.5)
    color[frame] = np.clip(color[frame] * 1.22, 0, 1)
    dice = grain(bay.astype(np.float32), floor.astype(np.float32), 1.0, house.shift)
    pane = np.array(condition.paint.glass, np.float32) * (0.75 + 0.6 * in_floor + 0.5 * (dice - 0.5))[..., None]
    color[glass] = pane[glass]
    light = np.zeros_like(color)
    lit = glass & (dice < house.lit)
    warm = np.array(WARM, np.float32)[(dice * 977).astype(int) % len(WARM)] * (0.55 + 0.45 * in_floor)[..., None]
    light[lit] = warm[lit] * 0.85
    return color, light
