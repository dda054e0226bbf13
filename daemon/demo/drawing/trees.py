"""Trees on the pavement."""

import numpy as np

from daemon.demo.conditions import Condition
from daemon.demo.drawing.canvas import Canvas, tinted
from daemon.demo.drawing.ground import Street
from daemon.demo.drawing.labels import Label
from daemon.demo.drawing.texture import grain


def draw_trees(canvas: Canvas, street: Street, condition: Condition, rng: np.random.Generator, sunny: int) -> None:
    """A row on each side, irregularly spaced."""
    spacing = condition.content.tree_spacing
    for side in (-1, 1):
        z = float(rng.uniform(5.0, 5.0 + spacing[1]))
        while z < 85:
            x = street.kerb(side) + side * float(rng.uniform(0.7, 1.3))
            _draw_tree(canvas, x, z, condition, rng, sunny)
            z += float(rng.uniform(*spacing))


def _draw_tree(canvas: Canvas, x: float, z: float, condition: Condition, rng: np.random.Generator, sunny: int) -> None:
    radius = float(rng.uniform(1.3, 2.3))
    middle = radius + float(rng.uniform(2.0, 3.2))
    paint = condition.paint
    canvas.shade_ground(x - sunny * 0.5, z, radius * 1.1, radius * 1.2, condition.weather.sun)
    trunk = [(x - 0.17, 0.0, z), (x + 0.17, 0.0, z), (x + 0.12, middle, z), (x - 0.12, middle, z)]
    canvas.solid(trunk, tinted(paint.trunk, float(rng.uniform(0.85, 1.15))), z, Label.TREE)
    camera = canvas.camera
    reach = radius * 1.35
    window = canvas.window(
        camera.column(x - reach, z),
        camera.row(middle + reach, z),
        camera.column(x + reach, z),
        camera.row(middle - reach, z),
    )
    if window is None:
        return
    across = (camera.right(window[1]) * z - x) / radius
    above = (camera.up(window[0]) * z + camera.eye - middle) / radius
    blobs = rng.uniform(-0.6, 0.6, (8, 2))
    sizes = rng.uniform(0.45, 0.75, 8)
    body = np.full((above.shape[0], across.shape[1]), -1.0, np.float32)
    for (dx, dy), size in zip(blobs, sizes, strict=True):
        np.maximum(body, 1 - ((across - dx) / size) ** 2 - ((above - dy) / size) ** 2, out=body)
    shift = int(rng.integers(500))
    leaf = grain(across * radius, above * radius, 0.16, shift)
    clump = grain(across * radius, above * radius, 0.45, shift + 3)
    mask = body + 0.55 * (clump - 0.5) + 0.3 * (leaf - 0.5) > 0
    shine = 0.80 + 0.22 * above + 0.14 * sunny * across + 0.42 * (leaf - 0.5) + 0.24 * (clump - 0.5)
    base = np.array(paint.leaves[rng.integers(len(paint.leaves))], np.float32)
    visible = canvas.visible(window, mask, z)
    canvas.paint(window, visible, base * np.clip(shine[visible], 0.35, 1.5)[:, None], z, Label.TREE)
