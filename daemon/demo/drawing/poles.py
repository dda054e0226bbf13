"""Street lamps, signs and traffic lights."""

import numpy as np

from daemon.demo.conditions import Condition
from daemon.demo.drawing.canvas import Canvas, Color, tinted
from daemon.demo.drawing.ground import Street
from daemon.demo.drawing.labels import Label

SIGNS: tuple[Color, ...] = ((0.82, 0.12, 0.12), (0.10, 0.30, 0.70), (0.92, 0.80, 0.16))
END = 28.0
"""Poles are drawn up to here (metres); further away they are thinner than a pixel."""
LAMP: Color = (1.0, 0.84, 0.56)


def draw_poles(canvas: Canvas, street: Street, condition: Condition, rng: np.random.Generator) -> None:
    """A row on each side close to the kerb: lamps, signs and traffic lights in turn."""
    for side in (-1, 1):
        z = float(rng.uniform(5.0, condition.content.pole_spacing[1]))
        while z < END:
            x = street.kerb(side) + side * float(rng.uniform(0.35, 0.6))
            color = tinted(condition.paint.pole, float(rng.uniform(0.85, 1.2)))
            kind = rng.random()
            if kind < 0.5:
                _draw_lamp(canvas, x, z, -side, color, condition.weather.lamps)
            elif kind < 0.85:
                _draw_sign(canvas, x, z, color, rng)
            else:
                _draw_traffic_light(canvas, x, z, color, condition.weather.lamps, rng)
            z += float(rng.uniform(*condition.content.pole_spacing))


def _post(canvas: Canvas, x: float, z: float, height: float, half: float, color: Color) -> None:
    bar = [(x - half, 0.0, z), (x, 0.0, z), (x, height, z), (x - half, height, z)]
    canvas.solid(bar, tinted(color, 1.15), z, Label.POLE)
    bar = [(x, 0.0, z), (x + half, 0.0, z), (x + half, height, z), (x, height, z)]
    canvas.solid(bar, tinted(color, 0.85), z, Label.POLE)


def _draw_lamp(canvas: Canvas, x: float, z: float, inward: int, color: Color, on: bool) -> None:
    _post(canvas, x, z, 6.0, 0.17, color)
    reach = x + inward * 1.5
    arm = [(x, 6.0, z), (x, 5.78, z), (reach, 6.08, z), (reach, 6.3, z)]
    canvas.solid(arm, color, z, Label.POLE)
    head = [(reach - 0.42, 6.05, z), (reach + 0.42, 6.05, z), (reach + 0.34, 6.34, z), (reach - 0.34, 6.34, z)]
    canvas.solid(head, tinted(color, 0.9), z - 0.02, Label.POLE, tinted(LAMP, 1.2) if on else None)


def _draw_sign(canvas: Canvas, x: float, z: float, color: Color, rng: np.random.Generator) -> None:
    height = float(rng.uniform(2.3, 2.9))
    _post(canvas, x, z, height, 0.14, color)
    paint = SIGNS[rng.integers(len(SIGNS))]
    for radius, tone, step in ((0.40, paint, 0.01), (0.26, (0.92, 0.92, 0.90), 0.02)):
        angles = np.linspace(0, 2 * np.pi, int(rng.choice([3, 4, 16])) + 1)[:-1] + np.pi / 2
        rim = [(x + radius * float(np.cos(a)), height + radius * float(np.sin(a)), z - 0.1) for a in angles]
        canvas.solid(rim, tone, z - step, Label.POLE)


def _draw_traffic_light(canvas: Canvas, x: float, z: float, color: Color, on: bool, rng: np.random.Generator) -> None:
    _post(canvas, x, z, 2.6, 0.14, color)
    box = [(x - 0.22, 2.3, z), (x + 0.22, 2.3, z), (x + 0.22, 3.3, z), (x - 0.22, 3.3, z)]
    canvas.solid(box, (0.10, 0.11, 0.11), z - 0.05, Label.POLE)
    colors: tuple[Color, ...] = ((0.2, 0.85, 0.35), (0.95, 0.7, 0.15), (0.95, 0.15, 0.12))
    shown = int(rng.integers(3))
    middle = 2.5 + 0.3 * shown
    bulb = [(x - 0.11, middle - 0.11, z), (x + 0.11, middle - 0.11, z), (x + 0.11, middle + 0.11, z)]
    bulb.append((x - 0.11, middle + 0.11, z))
    canvas.solid(bulb, colors[shown], z - 0.06, Label.POLE, colors[shown] if on else None)
