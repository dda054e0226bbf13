"""The sky and what closes the street far away."""

import numpy as np

from daemon.demo.conditions import Condition
from daemon.demo.drawing.canvas import Canvas
from daemon.demo.drawing.labels import Label
from daemon.demo.drawing.texture import smooth_noise

FAR = 400.0
"""Depth that the sky is given (metres): fog veils it a little near the horizon only."""


def draw_sky(canvas: Canvas, condition: Condition, rng: np.random.Generator) -> None:
    """A vertical gradient with clouds, on everything that is still empty."""
    camera, weather = canvas.camera, condition.weather
    zenith = np.array(weather.zenith[rng.integers(len(weather.zenith))], np.float32)
    low = np.array(weather.skyline[rng.integers(len(weather.skyline))], np.float32)
    height = np.clip(camera.up() / 0.55, 0, 1)[..., None] ** 0.7
    color = low + (zenith - low) * height
    bumps = smooth_noise(rng, camera.height, camera.width, 7, 4) * 0.65
    bumps += smooth_noise(rng, camera.height, camera.width, 18, 11) * 0.35
    cover = rng.uniform(0.35, 0.62)
    veil = np.clip((bumps - cover) * 5, 0, 0.85)[..., None] * np.clip(camera.up() * 6, 0, 1)[..., None]
    canvas.color[:] = color + (np.array(weather.clouds, np.float32) - color) * veil
    canvas.label[:] = Label.SKY


def draw_backdrop(canvas: Canvas, condition: Condition, rng: np.random.Generator) -> None:
    """A ragged line of tree tops and house tops where the street ends."""
    camera, paint = canvas.camera, condition.paint
    columns = np.arange(camera.width, dtype=np.float32)
    for label, depth, tops in ((Label.BUILDING, 170.0, (4, 26)), (Label.TREE, 150.0, (3, 15))):
        count = int(rng.integers(9, 22))
        knots = rng.uniform(*tops, count)
        place = np.arange(camera.width) * (count - 1) / camera.width
        smooth = label is Label.TREE
        top = np.interp(place, np.arange(count), knots) if smooth else knots[place.astype(int)]
        if smooth:
            top = top + 2.0 * np.sin(columns * 0.19) * np.sin(columns * 0.071)
        mask = camera.up() * depth + camera.eye < top[None, :]
        palette = paint.leaves if smooth else paint.facades
        window = (slice(0, camera.height), slice(0, camera.width))
        color = palette[rng.integers(len(palette))]
        canvas.paint(window, canvas.visible(window, mask & (camera.up() > -0.02), depth), color, depth, label)
