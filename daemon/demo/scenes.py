"""Street scenes for the demo: drawn from a seed, with exact labels, in two conditions.

Flat polygons in perspective, painted from far to near; then fog, lamps and sensor noise.
"""

import math
from collections.abc import Callable, Sequence
from enum import IntEnum
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from daemon.demo.conditions import Color, Condition

HEIGHT, WIDTH = 144, 192
"""Size of a scene (pixels)."""
SAMPLES = 3
"""Samples per pixel side: colours are their mean, the label is that of the middle one."""
NEAR, FAR = 0.7, 400.0
"""Nearest depth that is drawn, and the depth of the sky (metres)."""
BLACK, WARM = (0.0, 0.0, 0.0), (1.0, 0.82, 0.50)

Floats = NDArray[np.floating[Any]]
Point = tuple[float, float, float]


class Label(IntEnum):
    """The classes, in the order of `configs/class_lists/demo.yaml`."""

    SKY, BUILDING, TREE, ROAD, PAVEMENT, CAR, POLE, PERSON = range(8)


GRAIN = np.array([0.0, 0.06, 0.16, 0.05, 0.09, 0.02, 0.03, 0.05], np.float32)
"""How rough each class looks (relative standard deviation)."""


class Scene(NamedTuple):
    """A picture (RGB, [H, W, 3]) and its truth (class indices, [H, W])."""

    image: NDArray[np.uint8]
    label: NDArray[np.uint8]


def draw_scene(condition: Condition, seed: int, height: int = HEIGHT, width: int = WIDTH) -> Scene:
    """Draw scene number `seed` of `condition`; the same arguments give the same pixels."""
    street = _Street(condition, np.random.default_rng([condition.code, seed]), height, width)
    street.draw_sky()
    street.draw_ground()
    street.draw_houses()
    street.draw_objects()
    return Scene(street.photograph(), street.middle_samples(street.label))


def write_scene(
    folder: Path, condition: Condition, seed: int, labelled: bool, height: int = HEIGHT, width: int = WIDTH
) -> Path:
    """Draw a scene into `folder`/images, and into `folder`/labels when asked; return the picture's path."""
    name = f"{condition.name}_{seed:05d}.png"
    scene = draw_scene(condition, seed, height, width)
    for kind, pixels in {"images": scene.image, "labels": scene.label}.items():
        if kind == "images" or labelled:
            (folder / kind).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(folder / kind / name, compress_level=1)
    return folder / "images" / name


class _Street:
    """A street under a camera at (0, eye, 0). World: x to the right, y up, z ahead (metres); layers: samples."""

    def __init__(self, condition: Condition, rng: np.random.Generator, height: int, width: int) -> None:
        self.condition, self.rng, self.height, self.width = condition, rng, height, width
        size = (width * SAMPLES, height * SAMPLES)
        self.focal = size[0] * rng.uniform(0.80, 0.95)
        self.mid = size[0] * rng.uniform(0.42, 0.58)
        self.horizon = size[1] * rng.uniform(0.40, 0.50)
        self.eye, self.sunny = rng.uniform(1.3, 1.7), int(rng.choice([-1, 1]))
        self.half, self.pavement = rng.uniform(*condition.road), rng.uniform(*condition.pavement)
        self.center = -self.half * rng.uniform(0.30, 0.55)
        self.color, self.light = Image.new("RGB", size), Image.new("RGB", size)
        self.label, self.depth = Image.new("L", size), Image.new("F", size, FAR)

    def pick(self, colors: Sequence[Color]) -> Color:
        return _tinted(colors[int(self.rng.integers(len(colors)))], self.rng.uniform(0.88, 1.12))

    def paint(self, points: Sequence[Point], color: Color, label: int | None, light: Color = BLACK) -> None:
        """Fill the projection of a flat polygon, over what is there; without a label only its colour."""
        flat = [(self.mid + self.focal * x / z, self.horizon + self.focal * (self.eye - y) / z) for x, y, z in points]
        ImageDraw.Draw(self.color).polygon(flat, fill=_rgb(color))
        if label is not None:
            ImageDraw.Draw(self.light).polygon(flat, fill=_rgb(light))
            ImageDraw.Draw(self.label).polygon(flat, fill=int(label))
            ImageDraw.Draw(self.depth).polygon(flat, fill=sum(z for _, _, z in points) / len(points))

    def middle_samples(self, layer: Image.Image) -> NDArray[Any]:
        return np.asarray(layer)[SAMPLES // 2 :: SAMPLES, SAMPLES // 2 :: SAMPLES].copy()

    def soft_noise(self, rows: int, columns: int) -> Floats:
        """Noise [H, W, 1] (0-1) with about `rows` x `columns` bumps."""
        coarse = Image.fromarray(self.rng.random((rows, columns), dtype=np.float32))
        fine = coarse.resize((self.width, self.height), Image.Resampling.BICUBIC)
        return np.asarray(fine).clip(0, 1)[..., None]

    def elevation(self) -> Floats:
        """Height over distance of the ray through each row, [H, 1, 1]."""
        rows = (np.arange(self.height) + 0.5) * SAMPLES
        return ((self.horizon - rows) / self.focal)[:, None, None]

    def draw_sky(self) -> None:
        """Draw a gradient with clouds, and at the end of the street a ragged line of houses and trees."""
        condition, up = self.condition, np.clip(self.elevation(), 0, 1)
        skyline, cover = np.array(condition.skyline), self.rng.uniform(0.35, 0.62)
        sky = skyline + (np.array(condition.zenith) - skyline) * np.clip(up / 0.55, 0, 1) ** 0.7
        veil = np.clip((0.65 * self.soft_noise(9, 6) + 0.35 * self.soft_noise(20, 13) - cover) * 5, 0, 0.85)
        sky = sky + (np.array(condition.clouds) - sky) * veil * np.clip(up * 6, 0, 1)
        self.color.paste(Image.fromarray((255 * sky).astype(np.uint8)).resize(self.color.size))
        for x in np.arange(-130.0, 130.0, 13.0):
            house = _upright(x, x + 13, -20, self.rng.uniform(4, 26), 170)
            self.paint(house, self.pick(condition.facades), Label.BUILDING)
        for x in np.arange(-110.0, 110.0, 9.0):
            self.paint(_disc(x, self.rng.uniform(0, 7), 150, 7), self.pick(condition.leaves), Label.TREE)

    def draw_ground(self) -> None:
        condition, left, right = self.condition, self.center - self.half, self.center + self.half

        def flat(x0: float, x1: float, z0: float, z1: float, color: Color, label: int = Label.ROAD) -> None:
            self.paint([(x0, 0, z0), (x1, 0, z0), (x1, 0, z1), (x0, 0, z1)], color, label)

        slabs = self.pick(condition.slabs)
        flat(-900, 900, NEAR, FAR, slabs, Label.PAVEMENT)
        flat(left - 0.22, right + 0.22, NEAR, FAR, _tinted(slabs, 1.16), Label.PAVEMENT)
        flat(left, right, NEAR, FAR, self.pick(condition.asphalt))
        for x in (left + 0.35, right - 0.35):
            flat(x - 0.06, x + 0.06, NEAR, 70, condition.marks)
        for z in np.arange(self.rng.uniform(1, 6), 70, 6):
            flat(self.center - 0.09, self.center + 0.09, z, z + 3, condition.marks)

    def draw_houses(self) -> None:
        for side in (-1, 1):
            end = 95.0
            while end > 2:
                start = max(NEAR, end - self.rng.uniform(5, 13))
                if self.rng.random() >= self.condition.gap:
                    self._draw_house(side, start, end)
                end = start - self.rng.choice([0.0, 0.0, 2.5])

    def _draw_house(self, side: int, start: float, end: float) -> None:
        condition, rng = self.condition, self.rng
        height, storey, bay = rng.uniform(*condition.house), rng.uniform(2.8, 3.5), rng.uniform(1.8, 3.0)
        wall = self.center + side * (self.half + self.pavement + rng.choice([0.0, 0.0, 0.4, 1.5]))
        color = _tinted(self.pick(condition.facades), 1.0 if side == self.sunny else 1.0 - condition.sun)
        lit = rng.uniform(0.1, 0.45) * condition.lamps
        self.paint(_upright(wall, wall + side * 9, 0, height, start), _tinted(color, 0.8), Label.BUILDING)
        for near in np.arange(end - bay, start - bay, -bay):
            far, near = near + bay, max(near, start)
            self.paint(_along(wall, near, far, 0, height), color, Label.BUILDING)
            for y in np.arange(0.8, height - 1.8, storey):
                pane = _along(wall, near + 0.25 * bay, max(far - 0.25 * bay, near), y, y + 1.6)
                glow = _tinted(WARM, rng.uniform(0.4, 0.9)) if rng.random() < lit else BLACK
                glass = glow if any(glow) else _tinted(condition.glass, rng.uniform(0.7, 1.5))
                self.paint(pane, glass, Label.BUILDING, glow)

    def draw_objects(self) -> None:
        condition, rng = self.condition, self.rng
        things: list[tuple[float, float, Callable[[float, float], None]]] = []
        for side in (-1, 1):
            kerb = self.center + side * self.half
            trees = np.arange(rng.uniform(5, 5 + condition.trees[1]), 85, rng.uniform(*condition.trees))
            things += [(z, kerb + side * rng.uniform(0.7, 1.3), self._draw_tree) for z in trees]
            poles = np.arange(rng.uniform(4, condition.poles[1]), 28, rng.uniform(*condition.poles))
            things += [(z, kerb + side * rng.uniform(0.35, 0.6), self._draw_pole) for z in poles]
            places = np.arange(rng.uniform(4, 12), 70, rng.uniform(6, 8))
            things += [(z, kerb - side * 1.05, self._draw_car) for z in places if rng.random() < condition.parked]
        for _ in range(rng.integers(*condition.traffic, endpoint=True)):
            lane = self.center + rng.choice([-0.36, 0.36]) * self.half
            things.append((6.5 + 45 * rng.random() ** 1.5, lane, self._draw_car))
        for _ in range(rng.integers(*condition.people, endpoint=True)):
            aside = self.half + rng.uniform(0.5, self.pavement - 0.4) if rng.random() < 0.85 else 0.0
            things.append((4.5 + 14 * rng.random(), self.center + rng.choice([-1, 1]) * aside, self._draw_person))
        for z, x, draw in sorted(things, key=lambda thing: -thing[0]):
            draw(x, z)

    def _shade(self, x: float, z: float, half_width: float, half_length: float) -> None:
        rim = [(x + a * half_width, 0.0, max(NEAR, z + b * half_length)) for a, b, _ in _disc(0, 0, 0, 1)]
        self.paint(rim, _tinted(self.condition.asphalt[-1], 0.78 - self.condition.sun), None)

    def _draw_tree(self, x: float, z: float) -> None:
        radius, trunk = self.rng.uniform(1.3, 2.3), self.rng.uniform(2.0, 3.2)
        self._shade(x, z, radius, radius)
        self.paint(_upright(x - 0.17, x + 0.17, 0, trunk + radius, z), (0.30, 0.24, 0.19), Label.TREE)
        leaves = self.pick(self.condition.leaves)
        for dx, dy in self.rng.uniform(-0.65, 0.65, (22, 2)):
            shine = 0.85 + 0.3 * dy + 0.2 * self.sunny * dx + self.rng.uniform(-0.15, 0.15)
            clump = _disc(x + dx * radius, trunk + radius * (1 + dy), z, radius * self.rng.uniform(0.2, 0.6))
            self.paint(clump, _tinted(leaves, shine), Label.TREE)

    def _draw_pole(self, x: float, z: float) -> None:
        color = _tinted((0.37, 0.38, 0.40), self.rng.uniform(0.8, 1.2))
        end = x + (1.5 if x < self.center else -1.5)
        self.paint(_upright(x - 0.17, x + 0.17, 0, 6, z), color, Label.POLE)
        self.paint([(x, 6, z), (x, 5.75, z), (end, 6.05, z), (end, 6.3, z)], color, Label.POLE)
        glow = WARM if self.condition.lamps else BLACK
        self.paint(_upright(end - 0.42, end + 0.42, 6.05, 6.34, z), color, Label.POLE, glow)

    def _draw_car(self, x: float, z: float) -> None:
        rng, color = self.rng, self.pick(self.condition.cars)
        half, belt, roof, far = rng.uniform(0.85, 0.95), rng.uniform(0.86, 0.95), 1.47, z + rng.uniform(3.8, 4.7)
        high, lean, side = z + 1.4, half * 0.78, -1 if x > 0 else 1
        self._shade(x, (z + far) / 2, half * 1.2, 2.6)
        self.paint(_along(x + side * half, z, far, 0.3, belt), _tinted(color, 0.72), Label.CAR)
        cabin = [(x + side * half, belt, z), (x + side * half, belt, far - 0.4)]
        cabin += [(x + side * lean, roof, far - 0.9), (x + side * lean, roof, high)]
        self.paint(cabin, _tinted(color, 0.45), Label.CAR)
        screen = [(x - half, belt, z), (x + half, belt, z), (x + lean, roof, high), (x - lean, roof, high)]
        self.paint(screen, (0.22, 0.27, 0.32), Label.CAR)
        self.paint(_upright(x - half, x + half, 0.26, belt, z), color, Label.CAR)
        bulb = (1.0, 0.97, 0.86) if x < self.center else (0.80, 0.10, 0.08)
        for end in (x - lean, x + lean):
            lamp = _upright(end - 0.16, end + 0.16, belt - 0.26, belt - 0.08, z)
            self.paint(lamp, bulb, Label.CAR, bulb if self.condition.lamps else BLACK)

    def _draw_person(self, x: float, z: float) -> None:
        size, stride = self.rng.uniform(0.86, 1.06), self.rng.uniform(0.04, 0.28)
        shirt, trousers = self.pick(self.condition.clothes), self.pick(((0.18, 0.20, 0.28), (0.42, 0.38, 0.34)))
        self._shade(x, z, 0.35, 0.5)

        def part(points: Sequence[tuple[float, float]], color: Color) -> None:
            self.paint([(x + a * size, b * size, z) for a, b in points], color, Label.PERSON)

        for leg in (-1, 1):
            part([(0, 0.9), (leg * 0.18, 0.9), (leg * (stride + 0.08), 0), (leg * (stride - 0.07), 0)], trousers)
        part([(-0.19, 0.82), (0.19, 0.82), (0.24, 1.45), (0.1, 1.52), (-0.1, 1.52), (-0.24, 1.45)], shirt)
        part([(a, b) for a, b, _ in _disc(0, 1.66, 0, 0.15)], (0.72, 0.53, 0.42))

    def photograph(self) -> NDArray[np.uint8]:
        """Return the picture [H, W, 3]: the drawing through light, fog, lens and sensor."""
        condition, rng, label = self.condition, self.rng, self.middle_samples(self.label)
        sky, ground = label == Label.SKY, np.isin(label, (Label.ROAD, Label.PAVEMENT))
        color = np.asarray(self.color.reduce(SAMPLES), np.float32) / 255
        color *= 1 + GRAIN[label][..., None] * rng.standard_normal((*label.shape, 1), dtype=np.float32)
        color[~sky] *= np.array(condition.ambient)
        up = np.broadcast_to(self.elevation()[..., 0], label.shape)
        depth = np.where(ground, self.eye / np.maximum(-up, 1e-3), self.middle_samples(self.depth))
        bank = min(2.5, 120.0 / condition.visibility[1]) * np.exp(-np.maximum(up, 0) * 7)
        thickness = np.where(sky, bank, np.minimum(depth, FAR) / rng.uniform(*condition.visibility))
        clear, haze = np.exp(-thickness)[..., None], np.array(condition.haze)
        picture = haze + (color - haze) * clear
        light = np.asarray(self.light.reduce(SAMPLES), np.float32) / 255 * clear**0.6
        picture = np.maximum(picture, light) + 0.45 * _blurred(light, 2) + 0.9 * _blurred(light, 9)
        picture = np.clip(picture * rng.uniform(0.97, 1.03, 3) * rng.uniform(0.9, 1.1), 0, 1)
        spread = rng.uniform(*condition.noise) * (0.5 + 0.5 * np.sqrt(picture / 0.5))
        picture += spread * rng.standard_normal(picture.shape)
        return np.asarray((picture * 255 + 0.5).clip(0, 255), np.uint8)


def _blurred(picture: Floats, radius: float) -> Floats:
    image = Image.fromarray((np.clip(picture, 0, 1) * 255).astype(np.uint8))
    return np.asarray(image.filter(ImageFilter.GaussianBlur(radius)), np.float32) / 255


def _tinted(color: Color, factor: float) -> Color:
    return color[0] * factor, color[1] * factor, color[2] * factor


def _rgb(color: Color) -> tuple[int, ...]:
    return tuple(int(255 * min(1.0, channel)) for channel in color)


def _disc(x: float, y: float, z: float, radius: float) -> list[Point]:
    angles = [2 * math.pi * k / 14 for k in range(14)]
    return [(x + radius * math.cos(angle), y + radius * math.sin(angle), z) for angle in angles]


def _upright(x0: float, x1: float, y0: float, y1: float, z: float) -> list[Point]:
    return [(x0, y0, z), (x1, y0, z), (x1, y1, z), (x0, y1, z)]


def _along(x: float, z0: float, z1: float, y0: float, y1: float) -> list[Point]:
    return [(x, y0, z0), (x, y0, z1), (x, y1, z1), (x, y1, z0)]
