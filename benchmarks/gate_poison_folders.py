"""Hostile folders of drawn dusk scenes: what a broken camera or pipeline, or a stranger, puts into the drop folder.

Each takes the scenes of a segment and makes its frames, [H, W, 3] RGB, bytes of every one different.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

Pixels = NDArray[np.uint8]
Make = Callable[[Sequence[Pixels], np.random.Generator], list[Pixels]]


def _copies(scenes: Sequence[Pixels], rng: np.random.Generator) -> list[Pixels]:
    noisy = [scenes[0] + rng.integers(-2, 3, scenes[0].shape) for _ in scenes]
    return [_bytes(frame) for frame in noisy]


def _ramp(scenes: Sequence[Pixels], rng: np.random.Generator) -> list[Pixels]:
    gains = np.geomspace(0.25, 3.0, len(scenes))
    return [_bytes(frame * gain) for frame, gain in zip(scenes, gains, strict=True)]


def _noise(scenes: Sequence[Pixels], rng: np.random.Generator) -> list[Pixels]:
    return [rng.integers(0, 256, frame.shape, np.uint8) for frame in scenes]


def _half_garbage(scenes: Sequence[Pixels], rng: np.random.Generator) -> list[Pixels]:
    return [frame if place % 2 else _shapes(frame, rng) for place, frame in enumerate(scenes)]


def _half_noise(scenes: Sequence[Pixels], rng: np.random.Generator) -> list[Pixels]:
    return [frame if place % 2 else _noise([frame], rng)[0] for place, frame in enumerate(scenes)]


def _black(scenes: Sequence[Pixels], rng: np.random.Generator) -> list[Pixels]:
    return [rng.integers(0, 3, frame.shape, np.uint8) for frame in scenes]


def _swapped(scenes: Sequence[Pixels], rng: np.random.Generator) -> list[Pixels]:
    return [np.ascontiguousarray(frame[..., ::-1]) for frame in scenes]


def _upside_down(scenes: Sequence[Pixels], rng: np.random.Generator) -> list[Pixels]:
    return [np.ascontiguousarray(frame[::-1]) for frame in scenes]


def _negative(scenes: Sequence[Pixels], rng: np.random.Generator) -> list[Pixels]:
    return [255 - frame for frame in scenes]


def _shapes(frame: Pixels, rng: np.random.Generator) -> Pixels:
    """Draw coloured polygons, as of a foreign world."""
    image = Image.new("RGB", (frame.shape[1], frame.shape[0]), tuple(rng.integers(0, 256, 3).tolist()))
    brush = ImageDraw.Draw(image)
    for _ in range(12):
        corners = [(int(x), int(y)) for x, y in rng.integers(0, (image.width, image.height), (3, 2))]
        brush.polygon(corners, fill=tuple(rng.integers(0, 256, 3).tolist()))
    return np.asarray(image)


def _foreign(scenes: Sequence[Pixels], rng: np.random.Generator) -> list[Pixels]:
    return [_shapes(frame, rng) for frame in scenes]


def _painted_over(scenes: Sequence[Pixels], rng: np.random.Generator) -> list[Pixels]:
    """Cover the road, the lower middle, with sky colour."""
    frames = [frame.copy() for frame in scenes]
    for frame in frames:
        height, width = frame.shape[:2]
        frame[height * 6 // 10 :, width // 5 : width * 4 // 5] = frame[: height // 10].mean((0, 1)).astype(np.uint8)
        frame += rng.integers(0, 2, frame.shape, np.uint8) * (frame < 255)
    return frames


def _text(scenes: Sequence[Pixels], rng: np.random.Generator) -> list[Pixels]:
    frames = []
    for place, frame in enumerate(scenes):
        image = Image.fromarray(frame)
        brush = ImageDraw.Draw(image)
        for line in range(0, image.height, 12):
            brush.text((2, line), f"NO SIGNAL {place:04d} " * 3, fill=(255, 255, 0))
        frames.append(np.asarray(image))
    return frames


def _gradients(scenes: Sequence[Pixels], rng: np.random.Generator) -> list[Pixels]:
    frames = []
    for frame in scenes:
        height, width = frame.shape[:2]
        across, down = rng.uniform(-1, 1, (2, 3))
        plane = np.linspace(0, 1, width)[None, :, None] * across + np.linspace(0, 1, height)[:, None, None] * down
        frames.append(_bytes(128 + 127 * plane))
    return frames


def _blurred(scenes: Sequence[Pixels], rng: np.random.Generator) -> list[Pixels]:
    return [np.asarray(Image.fromarray(frame).filter(ImageFilter.GaussianBlur(8))) for frame in scenes]


def _checkered(scenes: Sequence[Pixels], rng: np.random.Generator) -> list[Pixels]:
    """Add a strong high-frequency pattern, which flips many pixels of a network."""
    rows, columns = np.indices(scenes[0].shape[:2])
    pattern = np.where((rows // 2 + columns // 2) % 2, 48, -48)[..., None]
    return [_bytes(frame.astype(int) + pattern * rng.choice([-1, 1], 3)) for frame in scenes]


def _stuck_lines(scenes: Sequence[Pixels], rng: np.random.Generator) -> list[Pixels]:
    frames = [frame.copy() for frame in scenes]
    for frame in frames:
        frame[rng.permutation(len(frame))[: len(frame) // 3]] = rng.integers(0, 256, 3)
    return frames


def _bytes(values: NDArray[np.generic]) -> Pixels:
    return np.clip(values, 0, 255).astype(np.uint8)


FOLDERS: dict[str, Make] = {
    "copies": _copies, "ramp": _ramp, "half_garbage": _half_garbage, "swapped": _swapped, "noise": _noise,
    "black": _black, "half_noise": _half_noise, "upside_down": _upside_down, "negative": _negative,
    "foreign": _foreign, "painted_over": _painted_over, "text": _text, "gradients": _gradients, "blurred": _blurred,
    "checkered": _checkered, "stuck_lines": _stuck_lines,
}  # fmt: skip
"""The six folders of the issue first."""


def hostile(name: str, scenes: Sequence[Path], folder: Path, seed: int) -> list[Path]:
    """Write the frames of folder `name`, made from the pictures `scenes`, as PNG files; return them in order."""
    folder.mkdir(parents=True, exist_ok=True)
    frames = FOLDERS[name](
        [np.asarray(Image.open(path).convert("RGB")) for path in scenes], np.random.default_rng(seed)
    )
    paths = [folder / f"{name}-{seed}-{place:04d}.png" for place in range(len(frames))]
    for path, frame in zip(paths, frames, strict=True):
        Image.fromarray(frame).save(path)
    return paths
