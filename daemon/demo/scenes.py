"""Street scenes for the demo: drawn from a seed, with exact labels, in two conditions (day and dusk)."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from daemon.demo.conditions import Condition
from daemon.demo.drawing.air import photograph
from daemon.demo.drawing.buildings import draw_houses
from daemon.demo.drawing.camera import Camera
from daemon.demo.drawing.canvas import Canvas
from daemon.demo.drawing.cars import draw_cars
from daemon.demo.drawing.ground import Street, draw_ground
from daemon.demo.drawing.people import draw_people
from daemon.demo.drawing.poles import draw_poles
from daemon.demo.drawing.sky import draw_backdrop, draw_sky
from daemon.demo.drawing.trees import draw_trees

HEIGHT = 144
"""Rows of a scene (pixels)."""
WIDTH = 192
"""Columns of a scene (pixels)."""
SAMPLES = 3
"""Samples per pixel side: colours are their mean, the label is that of the middle one."""


@dataclass(frozen=True, slots=True)
class Scene:
    """A picture and its truth."""

    image: NDArray[np.uint8]
    """RGB, [H, W, 3]."""
    label: NDArray[np.uint8]
    """Class index of every pixel, [H, W]; see `drawing.labels`."""


def draw_scene(condition: Condition, seed: int, height: int = HEIGHT, width: int = WIDTH) -> Scene:
    """The scene number `seed` of `condition`; the same arguments give the same pixels."""
    rng = np.random.default_rng([condition.code, seed])
    camera = _camera(height * SAMPLES, width * SAMPLES, rng)
    street = _street(condition, rng)
    sunny = int(rng.choice([-1, 1]))
    canvas = Canvas(camera)
    draw_sky(canvas, condition, rng)
    draw_backdrop(canvas, condition, rng)
    draw_ground(canvas, street, condition, rng)
    draw_houses(canvas, street, condition, rng, sunny)
    draw_trees(canvas, street, condition, rng, sunny)
    draw_poles(canvas, street, condition, rng)
    draw_cars(canvas, street, condition, rng)
    draw_people(canvas, street, condition, rng)
    middle = SAMPLES // 2
    image = photograph(canvas, condition.weather, SAMPLES, rng)
    return Scene(image=image, label=canvas.label[middle::SAMPLES, middle::SAMPLES].copy())


def _camera(height: int, width: int, rng: np.random.Generator) -> Camera:
    """A dashboard camera: a little different in every car."""
    return Camera(
        height=height,
        width=width,
        focal=width * float(rng.uniform(0.80, 0.95)),
        center_x=width * float(rng.uniform(0.42, 0.58)),
        horizon=height * float(rng.uniform(0.40, 0.50)),
        eye=float(rng.uniform(1.3, 1.7)),
    )


def _street(condition: Condition, rng: np.random.Generator) -> Street:
    content = condition.content
    half = float(rng.uniform(*content.road_half))
    crossing = float(rng.uniform(8.0, 20.0)) if rng.random() < content.crossing else None
    return Street(
        center=-half * float(rng.uniform(0.30, 0.55)),
        half=half,
        pavement=float(rng.uniform(*content.pavement)),
        crossing=crossing,
    )
