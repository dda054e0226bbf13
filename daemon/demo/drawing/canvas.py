"""What is drawn on: colour, light, depth and label of every sample, nearest thing first."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from daemon.demo.drawing.camera import Camera, Floats

Window = tuple[slice, slice]
Color = tuple[float, float, float]


class Canvas:
    """Layers [H, W]; whatever is painted stays only where it is nearer than what is there, so order does not matter."""

    def __init__(self, camera: Camera) -> None:
        shape = (camera.height, camera.width)
        self.camera = camera
        self.color: Floats = np.zeros((*shape, 3), np.float32)
        """Surface colour under plain light (RGB, 0-1)."""
        self.light: Floats = np.zeros((*shape, 3), np.float32)
        """Light that the surface gives off itself (RGB, 0-1)."""
        self.depth: Floats = np.full(shape, np.inf, np.float32)
        """Distance along z (metres)."""
        self.label: NDArray[np.uint8] = np.zeros(shape, np.uint8)
        """Class index."""

    def window(self, left: float, top: float, right: float, bottom: float) -> Window | None:
        """The canvas rectangle around the given one (pixels); none when it lies outside."""
        x0, y0 = max(0, int(np.floor(left))), max(0, int(np.floor(top)))
        x1, y1 = min(self.camera.width, int(np.ceil(right)) + 1), min(self.camera.height, int(np.ceil(bottom)) + 1)
        return (slice(y0, y1), slice(x0, x1)) if x0 < x1 and y0 < y1 else None

    def visible(self, window: Window, mask: NDArray[np.bool_], depth: Floats | float) -> NDArray[np.bool_]:
        """Where `mask` [h, w] of `window` at `depth` (metres, number or [h, w]) is nearer than what is there."""
        return np.asarray(mask & (depth < self.depth[window]))

    def paint(
        self,
        window: Window,
        visible: NDArray[np.bool_],
        color: Floats | Color,
        depth: Floats | float,
        label: int,
        light: Floats | Color | None = None,
    ) -> None:
        """Paint the n samples `visible` [h, w] of `window`; colour and light are one RGB value or [n, 3]."""
        self.color[window][visible] = color
        self.light[window][visible] = (0, 0, 0) if light is None else light
        self.depth[window][visible] = depth if isinstance(depth, float) else depth[visible]
        self.label[window][visible] = label

    def polygon(
        self, points: NDArray[np.floating], color: Color, depth: float, label: int, light: Color | None = None
    ) -> None:
        """Fill the polygon with corners `points` [N, 2] (column, row)."""
        low, high = points.min(axis=0), points.max(axis=0)
        window = self.window(low[0], low[1], high[0], high[1])
        if window is None:
            return
        rows, columns = window
        stencil = Image.new("1", (columns.stop - columns.start, rows.stop - rows.start))
        corners = [(float(x) - columns.start, float(y) - rows.start) for x, y in points]
        ImageDraw.Draw(stencil).polygon(corners, fill=1)
        self.paint(window, self.visible(window, np.asarray(stencil), depth), color, depth, label, light)

    def solid(
        self,
        points: list[tuple[float, float, float]],
        color: Color,
        depth: float,
        label: int,
        light: Color | None = None,
    ) -> None:
        """Fill the projection of a flat polygon with world corners `points` (metres)."""
        self.polygon(self.camera.project(np.array(points)), color, depth, label, light)

    def shade_ground(self, x: float, z: float, half_width: float, half_length: float, strength: float) -> None:
        """Darken the ground in an ellipse around (x, z) (metres): a shadow. Only where the ground is visible."""
        near = max(z - half_length, 0.8)
        far = z + half_length
        columns = [self.camera.column(x + side * half_width, depth) for side in (-1, 1) for depth in (near, far)]
        window = self.window(min(columns), self.camera.row(0, far), max(columns), self.camera.row(0, near))
        if window is None:
            return
        up = np.minimum(self.camera.up(window[0]), -1e-4)
        ground_z = -self.camera.eye / up
        ground_x = self.camera.right(window[1]) * ground_z
        inside = 1 - ((ground_x - x) / half_width) ** 2 - ((ground_z - z) / half_length) ** 2
        on_ground = np.abs(self.depth[window] - ground_z) < 1e-2 * ground_z
        factor = 1 - strength * np.clip(2.5 * inside, 0, 1) * on_ground
        self.color[window] *= factor[..., None].astype(np.float32)


def tinted(color: Color, factor: float) -> Color:
    """`color` made lighter or darker by `factor`, within 0-1."""
    red, green, blue = (min(1.0, max(0.0, channel * factor)) for channel in color)
    return red, green, blue
