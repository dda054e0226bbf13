"""Road, lane marks, kerbs and pavements."""

from dataclasses import dataclass

import numpy as np

from daemon.demo.conditions import Condition
from daemon.demo.drawing.camera import Floats
from daemon.demo.drawing.canvas import Canvas
from daemon.demo.drawing.labels import Label
from daemon.demo.drawing.texture import grain, stripes


@dataclass(frozen=True, slots=True)
class Street:
    """Where things are across the street (metres, in camera coordinates)."""

    center: float
    """x of the middle of the carriageway."""
    half: float
    """Half width of the carriageway."""
    pavement: float
    """Width of each pavement."""
    crossing: float | None
    """z of a zebra crossing; none when there is none."""

    def kerb(self, side: int) -> float:
        """x of the kerb on `side` (-1 left, 1 right)."""
        return self.center + side * self.half

    def wall(self, side: int) -> float:
        """x of the house fronts on `side` (-1 left, 1 right)."""
        return self.center + side * (self.half + self.pavement)


def draw_ground(canvas: Canvas, street: Street, condition: Condition, rng: np.random.Generator) -> None:
    """Paint the plane y = 0 below the horizon: carriageway in the middle, pavement on both sides."""
    camera = canvas.camera
    top = max(0, int(camera.horizon) + 1)
    window = (slice(top, camera.height), slice(0, camera.width))
    z = camera.eye / np.maximum(-camera.up(window[0]), 1e-4)
    across = camera.right() * z - street.center
    z = np.broadcast_to(z, across.shape)
    on_road = np.abs(across) < street.half
    for mask, surface, label in ((on_road, _road, Label.ROAD), (~on_road, _pavement, Label.PAVEMENT)):
        visible = canvas.visible(window, mask, z)
        color = surface(across[visible], z[visible], street, condition, rng)
        canvas.paint(window, visible, color, z, label)


def _road(across: Floats, z: Floats, street: Street, condition: Condition, rng: np.random.Generator) -> Floats:
    """Colour of the carriageway at n points, [n, 3]: asphalt with patches, tyre tracks, lane marks."""
    paint = condition.paint
    base = np.array(paint.asphalt[rng.integers(len(paint.asphalt))], np.float32)
    speck = (grain(across, z, 0.05) - 0.5) * 0.10 * np.clip(12 / z, 0, 1)
    patch = (grain(across, z, 1.7, int(rng.integers(500))) - 0.5) * 0.05
    track = -0.03 * (np.abs(np.abs(np.abs(across) - street.half / 2) - 0.75) < 0.22)
    color: Floats = base + (speck + patch + track)[..., None]
    worn = grain(across, z, 0.12, 91) > (0.35 if paint.cobbled else 0.04)
    dashes = (np.abs(across) < 0.09) & stripes(z, 6.0, 0.5)
    edges = np.abs(np.abs(across) - street.half + 0.35) < 0.06
    marks = dashes | edges
    if street.crossing is not None:
        marks |= stripes(across, 1.0, 0.5) & (np.abs(z - street.crossing) < 1.6)
    color[marks & worn & (z < 70)] = paint.marks
    return color


def _pavement(across: Floats, z: Floats, street: Street, condition: Condition, rng: np.random.Generator) -> Floats:
    """Colour of the pavements at n points, [n, 3]: slabs or setts with joints, a kerb stone along the road."""
    paint = condition.paint
    base = np.array(paint.slabs[rng.integers(len(paint.slabs))], np.float32)
    side = 0.35 if paint.cobbled else 0.9
    spread = 0.16 if paint.cobbled else 0.06
    tone = (grain(across, z, side, 17) - 0.5) * spread
    speck = (grain(across, z, 0.04, 5) - 0.5) * 0.05
    joint = (stripes(across, side, 0.07) | stripes(z, side, 0.07)) * np.clip(1 - z / 30, 0, 1) * 0.14
    color: Floats = base + (tone + speck - joint)[..., None]
    kerb = np.abs(across) < street.half + 0.22
    color[kerb] = base * 1.18 - 0.10 * stripes(z, 1.2, 0.06)[kerb][:, None]
    return color
