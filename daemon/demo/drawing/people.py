"""People on the pavements and at the crossing."""

import numpy as np

from daemon.demo.conditions import Condition
from daemon.demo.drawing.canvas import Canvas, Color, tinted
from daemon.demo.drawing.ground import Street
from daemon.demo.drawing.labels import Label

SKIN: tuple[Color, ...] = ((0.87, 0.67, 0.54), (0.60, 0.42, 0.31), (0.76, 0.56, 0.42), (0.40, 0.28, 0.22))
TROUSERS: tuple[Color, ...] = ((0.18, 0.20, 0.28), (0.24, 0.22, 0.20), (0.42, 0.38, 0.34), (0.14, 0.14, 0.15))


def draw_people(canvas: Canvas, street: Street, condition: Condition, rng: np.random.Generator) -> None:
    """Mostly on the pavements, some on the zebra crossing, now and then a small group."""
    low, high = condition.content.people
    for _ in range(int(rng.integers(int(low), int(high) + 1))):
        z = float(4.5 + 14 * rng.random() ** 1.1)
        side = int(rng.choice([-1, 1]))
        x = street.kerb(side) + side * float(rng.uniform(0.5, max(0.8, street.pavement - 0.4)))
        if street.crossing is not None and rng.random() < 0.5:
            z = street.crossing + float(rng.uniform(-1, 1))
            x = street.center + float(rng.uniform(-0.9, 0.9)) * street.half
        for step in range(1 + int(rng.random() < 0.25)):
            _draw_person(canvas, x + 0.6 * step, z + 0.2 * step, condition, rng)


def _draw_person(canvas: Canvas, x: float, z: float, condition: Condition, rng: np.random.Generator) -> None:
    size = float(rng.uniform(0.86, 1.06))
    stride = float(rng.uniform(0.02, 0.26))
    clothes = condition.paint.clothes
    shirt = tinted(clothes[rng.integers(len(clothes))], float(rng.uniform(0.85, 1.15)))
    legs = TROUSERS[rng.integers(len(TROUSERS))]
    canvas.shade_ground(x, z, 0.35, 0.5, 0.2 + condition.weather.sun)

    def part(points: list[tuple[float, float]], color: Color, order: int) -> None:
        canvas.solid([(x + a * size, b * size, z) for a, b in points], color, z - 0.01 * order, Label.PERSON)

    part([(-0.02, 0.88), (-0.17, 0.88), (-stride - 0.09, 0.0), (-stride + 0.06, 0.0)], tinted(legs, 0.8), 1)
    part([(0.02, 0.88), (0.17, 0.88), (stride + 0.09, 0.0), (stride - 0.06, 0.0)], legs, 2)
    part([(-0.19, 0.82), (0.19, 0.82), (0.24, 1.45), (0.12, 1.52), (-0.12, 1.52), (-0.24, 1.45)], shirt, 3)
    swing = stride * 0.6
    part([(-0.24, 1.44), (-0.15, 1.40), (-0.22 - swing, 0.85), (-0.31 - swing, 0.87)], tinted(shirt, 0.75), 4)
    part([(0.24, 1.44), (0.15, 1.40), (0.22 + swing, 0.85), (0.31 + swing, 0.87)], tinted(shirt, 0.88), 5)
    skin = SKIN[rng.integers(len(SKIN))]
    angles = np.linspace(0, 2 * np.pi, 15)[:-1]
    part([(0.125 * float(np.cos(a)), 1.65 + 0.155 * float(np.sin(a))) for a in angles], skin, 6)
    hair = [(0.135 * float(np.cos(a)), 1.68 + 0.15 * float(np.sin(a))) for a in np.linspace(0, np.pi, 9)]
    part(hair, tinted(TROUSERS[rng.integers(len(TROUSERS))], 0.9), 7)
