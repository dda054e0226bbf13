"""Light, fog, wet ground, lens and sensor: from a canvas to the picture that a camera would take."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from daemon.demo.conditions import Weather
from daemon.demo.drawing.camera import Floats
from daemon.demo.drawing.canvas import Canvas
from daemon.demo.drawing.labels import Label
from daemon.demo.drawing.sky import FAR
from daemon.demo.drawing.texture import smooth_noise


def photograph(canvas: Canvas, weather: Weather, samples: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """The picture [H / samples, W / samples, 3] of the canvas [H, W] under `weather`."""
    sky = canvas.label == Label.SKY
    ambient = np.array(weather.ambient, np.float32)
    shown = np.where(sky[..., None], canvas.color, canvas.color * ambient)
    haze = np.array(weather.haze, np.float32)
    thickness = np.minimum(canvas.depth, FAR) / np.float32(rng.uniform(*weather.visibility))
    thickness[sky] = _sky_fog(canvas, weather)[sky]
    clear = np.exp(-thickness)[..., None]
    picture = _shrink(haze + (shown - haze) * clear, samples)
    light = _shrink(canvas.light * clear**0.6, samples) if weather.lamps else np.zeros_like(picture)
    if weather.wet:
        picture = _mirror(picture, light, canvas, weather, samples, rng)
    if weather.lamps:
        picture = np.maximum(picture, light) + _glow(light)
    return _expose(picture, weather, rng)


def _sky_fog(canvas: Canvas, weather: Weather) -> Floats:
    """Optical thickness [H, W] towards the sky: a bank of fog low above the horizon."""
    dense = min(2.5, 120.0 / weather.visibility[1])
    return np.broadcast_to(dense * np.exp(-np.maximum(canvas.camera.up(), 0) * 7), canvas.depth.shape)


def _shrink(layer: Floats, samples: int) -> Floats:
    """Mean over squares of `samples` x `samples`: [H, W, 3] -> [H / samples, W / samples, 3]."""
    total = np.zeros_like(layer[::samples, ::samples])
    for row in range(samples):
        for column in range(samples):
            total += layer[row::samples, column::samples]
    return np.asarray(total / samples**2, np.float32)


def _mirror(
    picture: Floats, light: Floats, canvas: Canvas, weather: Weather, samples: int, rng: np.random.Generator
) -> Floats:
    """Sky, houses and lamps mirrored in the wet road, smeared downwards as rough water does."""
    height, width = picture.shape[:2]
    ground = np.isin(canvas.label[samples // 2 :: samples, samples // 2 :: samples], (Label.ROAD, Label.PAVEMENT))
    horizon = canvas.camera.horizon / samples
    rows = np.clip((2 * horizon - np.arange(height)).astype(int), 0, height - 1)
    image = Image.fromarray((np.clip(picture[rows], 0, 1) * 255).astype(np.uint8))
    mirrored = np.asarray(image.filter(ImageFilter.BoxBlur((1, 6))), np.float32) / 255
    smear = np.zeros_like(light)
    for row in range(1, height):
        smear[row] = smear[row - 1] * 0.93 + light[row - 1] * 0.10
    puddles = 0.45 + 0.9 * smooth_noise(rng, height, width, 16, 6)
    share = (weather.wet * puddles * ground)[..., None]
    return picture + (mirrored - picture) * share + smear * share * 2.0


def _glow(light: Floats) -> Floats:
    """Light scattered by lens and fog around lamps."""
    image = Image.fromarray((np.clip(light, 0, 1) * 255).astype(np.uint8))
    near = np.asarray(image.filter(ImageFilter.GaussianBlur(2.0)), np.float32)
    far = np.asarray(image.filter(ImageFilter.GaussianBlur(9.0)), np.float32)
    return np.asarray((0.45 * near + 0.9 * far) / 255, np.float32)


def _expose(picture: Floats, weather: Weather, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Exposure, white balance and sensor noise, which grows with the square root of the signal."""
    tint = rng.uniform(0.97, 1.03, 3).astype(np.float32) * np.float32(rng.uniform(*weather.exposure))
    exposed = np.clip(picture * tint, 0, 1)
    spread = np.float32(rng.uniform(*weather.noise)) * (0.5 + np.sqrt(exposed / 0.5) * 0.5)
    noisy = exposed + spread * rng.standard_normal(exposed.shape, dtype=np.float32)
    return np.asarray(np.clip(noisy * 255 + 0.5, 0, 255), np.uint8)
