"""Cars: parked along the kerbs and driving in both lanes."""

from dataclasses import dataclass

import numpy as np

from daemon.demo.conditions import Condition
from daemon.demo.drawing.canvas import Canvas, Color, tinted
from daemon.demo.drawing.ground import Street
from daemon.demo.drawing.labels import Label

Point = tuple[float, float, float]
GLASS: Color = (0.20, 0.25, 0.30)
SPACE = 7.0
"""Least distance between the near ends of two cars in a lane (metres)."""
TYRE: Color = (0.08, 0.08, 0.09)


@dataclass(frozen=True, slots=True)
class Car:
    """A car as two boxes: the body and the cabin (metres); x is the middle, z the end that is nearer."""

    x: float
    z: float
    width: float
    length: float
    belt: float
    """Height of the body."""
    roof: float
    """Height of the roof."""
    nose: float
    """Length of the body before and behind the cabin."""
    color: Color
    oncoming: bool
    """The nearer end is the front."""
    lamps: bool
    """Lights are on."""


def draw_cars(canvas: Canvas, street: Street, condition: Condition, rng: np.random.Generator) -> None:
    """Parked cars on both sides, then traffic."""
    content = condition.content
    for side in (-1, 1):
        z = float(rng.uniform(4.0, 12.0))
        while z < 70:
            if rng.random() < content.parked:
                x = street.kerb(side) - side * float(rng.uniform(0.95, 1.15))
                draw_car(canvas, _car(x, z, side < 0, False, condition, rng), condition.weather.sun)
            z += float(rng.uniform(5.8, 8.0))
    taken: list[tuple[bool, float]] = []
    for _ in range(int(rng.integers(int(content.traffic[0]), int(content.traffic[1]) + 1))):
        oncoming = bool(rng.random() < 0.5)
        x = street.center + (-1 if oncoming else 1) * street.half * float(rng.uniform(0.30, 0.42))
        z = float(6.5 + 45 * rng.random() ** 1.5)
        if all(lane != oncoming or abs(z - other) > SPACE for lane, other in taken):
            taken.append((oncoming, z))
            draw_car(canvas, _car(x, z, oncoming, condition.weather.lamps, condition, rng), condition.weather.sun)


def _car(x: float, z: float, oncoming: bool, lamps: bool, condition: Condition, rng: np.random.Generator) -> Car:
    tall = bool(rng.random() < 0.25)
    colors = condition.paint.cars
    return Car(
        x=x,
        z=z,
        width=float(rng.uniform(1.7, 1.9)),
        length=float(rng.uniform(3.8, 4.7)),
        belt=float(rng.uniform(0.86, 0.95)) + 0.12 * tall,
        roof=float(rng.uniform(1.42, 1.52)) + 0.38 * tall,
        nose=0.15 if tall else float(rng.uniform(0.4, 0.9)),
        color=tinted(colors[rng.integers(len(colors))], float(rng.uniform(0.85, 1.12))),
        oncoming=oncoming,
        lamps=lamps,
    )


def draw_car(canvas: Canvas, car: Car, sun: float) -> None:
    """Shadow, far parts, near parts; each a little nearer than the one before, so that the last one stays on top."""
    canvas.shade_ground(car.x, car.z + car.length / 2, car.width * 0.62, car.length * 0.58, 0.45 + sun)
    half, near, far = car.width / 2, car.z, car.z + car.length
    flank = -half if car.x > 0 else half
    faces = _side(car, car.x + flank, near, far) + _cabin(car, half, flank, near, far) + _end(car, half, near)
    for order, (corners, color, light) in enumerate(faces):
        canvas.solid(corners, color, near - 0.002 * order, Label.CAR, light)


Face = tuple[list[Point], Color, Color | None]


def _quad(x0: float, x1: float, y0: float, y1: float, z: float) -> list[Point]:
    return [(x0, y0, z), (x1, y0, z), (x1, y1, z), (x0, y1, z)]


def _side(car: Car, x: float, near: float, far: float) -> list[Face]:
    """The flank that the camera sees, with its wheels."""
    body = [(x, 0.30, near), (x, 0.30, far), (x, car.belt * 0.92, far), (x, car.belt, far - car.nose)]
    body += [(x, car.belt, near + car.nose), (x, car.belt * 0.92, near)]
    faces: list[Face] = [(body, tinted(car.color, 0.72), None)]
    for z in (near + 0.8, far - 0.8):
        for radius, color in ((0.33, TYRE), (0.17, (0.45, 0.45, 0.47))):
            angles = np.linspace(0, 2 * np.pi, 13)[:-1]
            wheel = [(x, 0.33 + radius * float(np.sin(a)), z + radius * float(np.cos(a))) for a in angles]
            faces.append((wheel, color, None))
    return faces


def _cabin(car: Car, half: float, flank: float, near: float, far: float) -> list[Face]:
    """Bonnet, cabin flank with its window, and the window at the near end."""
    low_near, low_far = near + car.nose, far - car.nose * 1.3
    high_near, high_far = low_near + 0.45, low_far - 0.5
    outer, inner = half * 0.94, half * 0.76
    x_low, x_high = car.x + np.sign(flank) * outer, car.x + np.sign(flank) * inner
    bonnet = [(car.x - half, car.belt * 0.92, near), (car.x + half, car.belt * 0.92, near)]
    bonnet += [(car.x + outer, car.belt, low_near), (car.x - outer, car.belt, low_near)]
    shelf = [(car.x - half, car.belt, low_near), (car.x + half, car.belt, low_near)]
    shelf += [(car.x + half, car.belt, far - 0.1), (car.x - half, car.belt, far - 0.1)]
    shell: list[Point] = [(x_low, car.belt, low_near), (x_low, car.belt, low_far), (x_high, car.roof, high_far)]
    shell.append((x_high, car.roof, high_near))
    pane = _shrunk(shell, 0.80)
    end = [(car.x - outer, car.belt, low_near), (car.x + outer, car.belt, low_near)]
    end += [(car.x + inner, car.roof, high_near), (car.x - inner, car.roof, high_near)]
    roof = [(car.x - inner, car.roof, high_near), (car.x + inner, car.roof, high_near)]
    roof += [(car.x + inner * 0.97, car.roof + 0.05, high_far), (car.x - inner * 0.97, car.roof + 0.05, high_far)]
    return [
        (shelf, tinted(car.color, 1.05), None),
        (roof, tinted(car.color, 1.1), None),
        (shell, tinted(car.color, 0.75), None),
        (pane, GLASS, None),
        (bonnet, tinted(car.color, 1.12), None),
        (end, tinted(car.color, 0.95), None),
        (_shrunk(end, 0.84), tinted(GLASS, 1.25), None),
    ]


def _end(car: Car, half: float, z: float) -> list[Face]:
    """Bumper, lights, plate and tyres of the nearer end."""
    x, top = car.x, car.belt * 0.92
    faces: list[Face] = [
        (_quad(x - half * 0.9, x - half * 0.55, 0.0, 0.4, z), TYRE, None),
        (_quad(x + half * 0.55, x + half * 0.9, 0.0, 0.4, z), TYRE, None),
        (_quad(x - half, x + half, 0.26, top, z), car.color, None),
        (_quad(x - half * 0.96, x + half * 0.96, 0.28, 0.44, z), tinted(car.color, 0.45), None),
        (_quad(x - 0.26, x + 0.26, 0.46, 0.58, z), (0.88, 0.88, 0.82), None),
    ]
    bulb: Color = (0.95, 0.95, 0.88) if car.oncoming else (0.65, 0.08, 0.08)
    glow: Color | None = ((1.0, 0.97, 0.86) if car.oncoming else (0.95, 0.10, 0.08)) if car.lamps else None
    for side in (-1, 1):
        left, right = sorted((x + side * half * 0.58, x + side * half * 0.94))
        faces.append((_quad(left, right, top - 0.26, top - 0.08, z), bulb, glow))
    return faces


def _shrunk(corners: list[Point], share: float) -> list[Point]:
    """The polygon scaled by `share` about its middle."""
    points = np.array(corners)
    middle = points.mean(axis=0)
    return [(float(x), float(y), float(z)) for x, y, z in middle + (points - middle) * share]
