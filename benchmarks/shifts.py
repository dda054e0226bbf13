"""Weather, night and sensor noise over daylight frames, by formula: shifts with known labels, repeatable to the byte.

Each transform takes an image [h, w, 3] uint8, the number of the frame (its seed) and a severity from 0 (nothing) to 1
(as strong as the benchmark goes), and gives an image of the same kind. Labels stay true: nothing moves.

- fog: Koschmieder's law, I = J t + A (1 - t), t = exp(-beta d) (Sakaridis et al. 2018, Foggy Cityscapes). CamVid has no
  depth, so d is a proxy of a flat road: 1 / (distance below the horizon), capped; above the horizon it is the cap.
- rain: lower contrast and saturation, a grey veil, and drawn-out bright streaks (blurred noise along one direction).
- night: linear light is scaled down and raised to a power, tinted blue-violet, and shot noise is added.
- sensor noise: Poisson shot noise and Gaussian read noise in linear light, at a low photon count.
"""

from collections.abc import Callable
from functools import partial

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
Light = NDArray[np.float32]
Shift = Callable[[Pixels, int], Pixels]

HORIZON = 0.45
"""Height of the horizon in a CamVid frame, as a share from the top."""
FAR = 8.0
"""Depth proxy of everything at or above the horizon; the bottom of the frame has 1."""
FOG_BETA, FOG_LIGHT = 0.45, 0.80
"""Attenuation per unit of depth at severity 1, and the fog's brightness (0-1)."""
RAIN_CONTRAST, RAIN_VEIL, RAIN_STREAK = 0.45, 0.25, 0.35
NIGHT_LIGHT, NIGHT_GAMMA = 0.85, 1.6
NIGHT_TINT = (0.80, 0.85, 1.15)
"""Factors on red, green and blue at severity 1."""
NIGHT_PHOTONS, NOISE_PHOTONS = 120.0, 12.0
"""Photons that white means at severity 1: fewer is noisier."""
READ_NOISE = 0.05
"""Deviation of the read noise at severity 1, as a share of white."""
DISPLAY_GAMMA = 2.2


def fog(image: Pixels, number: int, severity: float = 1.0) -> Pixels:
    """Fog that thickens with distance; its density varies a little from frame to frame."""
    height = image.shape[0]
    below = (np.arange(height, dtype=np.float32) + 0.5) / height - HORIZON  # [h], positive on the road
    depth = np.where(below > 0, np.minimum((1.0 - HORIZON) / np.maximum(below, 1e-6), FAR), FAR)
    density = severity * FOG_BETA * _generator(number, 1).uniform(0.8, 1.2)
    transmission = np.exp(-density * depth).astype(np.float32)[:, None, None]  # [h, 1, 1]
    return _to_bytes(_to_unit(image) * transmission + FOG_LIGHT * (1.0 - transmission))


def rain(image: Pixels, number: int, severity: float = 1.0) -> Pixels:
    """Flat light under a grey sky, and streaks."""
    light = _to_unit(image)
    grey = light.mean(axis=2, keepdims=True)
    flat = light + 0.6 * severity * (grey - light)
    flat = flat.mean() + (1.0 - RAIN_CONTRAST * severity) * (flat - flat.mean())
    veiled = flat * (1.0 - RAIN_VEIL * severity) + RAIN_VEIL * severity * 0.55
    return _to_bytes(veiled + RAIN_STREAK * severity * _streaks(image.shape[:2], number)[..., None])


def night(image: Pixels, number: int, severity: float = 1.0) -> Pixels:
    """Return a darker, bluer, noisier picture of the same scene."""
    light = _to_unit(image) ** (DISPLAY_GAMMA * (1.0 + (NIGHT_GAMMA - 1.0) * severity))
    tint = 1.0 + severity * (np.array(NIGHT_TINT, np.float32) - 1.0)
    dark = light * (1.0 - NIGHT_LIGHT * severity) * tint
    return _to_bytes(_display(_with_noise(dark, NIGHT_PHOTONS, 0.2 * READ_NOISE, severity, _generator(number, 3))))


def sensor_noise(image: Pixels, number: int, severity: float = 1.0) -> Pixels:
    """Shot and read noise of a sensor that gets few photons."""
    light = _to_unit(image) ** DISPLAY_GAMMA
    return _to_bytes(_display(_with_noise(light, NOISE_PHOTONS, READ_NOISE, severity, _generator(number, 4))))


def unchanged(image: Pixels, number: int) -> Pixels:
    """Return the daylight frame itself."""
    return image


def sequence(severity: float) -> tuple[tuple[str, Shift], ...]:
    """Return the stages of continual drift, from day through bad weather back to day."""
    stages = [("fog", fog), ("rain", rain), ("night", night), ("sensor noise", sensor_noise)]
    shifted = [(name, partial(transform, severity=severity)) for name, transform in stages]
    return (("day", unchanged), *shifted, ("day again", unchanged))


def _generator(number: int, kind: int) -> np.random.Generator:
    return np.random.default_rng((kind, number))


def _to_unit(image: Pixels) -> Light:
    return image.astype(np.float32) / np.float32(255.0)


def _to_bytes(light: NDArray[np.floating]) -> Pixels:
    return np.round(np.clip(light, 0.0, 1.0) * 255.0).astype(np.uint8)


def _display(light: NDArray[np.floating]) -> NDArray[np.floating]:
    """Linear light to display values."""
    shown: NDArray[np.floating] = np.clip(light, 0.0, 1.0) ** (1.0 / DISPLAY_GAMMA)
    return shown


def _with_noise(
    light: NDArray[np.floating], photons: float, read: float, severity: float, generator: np.random.Generator
) -> NDArray[np.floating]:
    """Linear light as a sensor counts it: Poisson of `photons` / severity at white, plus Gaussian read noise."""
    if severity <= 0.0:
        return light
    count = photons / severity
    return generator.poisson(light * count) / count + generator.normal(0.0, read * severity, light.shape)


def _streaks(size: tuple[int, int], number: int) -> Light:
    """Rain streaks, [h, w] in 0-1: sparse bright dots, smeared down a slanted line of 1/18 of the height."""
    generator = _generator(number, 2)
    height = size[0]
    dots = (generator.random(size) > 0.985).astype(np.float32)
    slant = generator.uniform(-0.35, 0.35)
    length = max(2, height // 18)
    smeared = np.zeros(size, np.float32)
    for step in range(length):
        smeared += np.roll(dots, (step, round(slant * step)), axis=(0, 1))
    return np.minimum(smeared, 1.0)
