"""What every peer of benchmarks/serving.py does with a batch: our decoding, module and encoding.

So the servers differ in how they serve, not in what they compute. Runs in a peer's environment with the project on its
path; of the project only `storage` and `adapters` are imported.
"""

import io
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image

from adapters.checkpoints.checkpoint import load_version
from adapters.inference.segment import segment_fitted
from storage.media.images import decode_image, fit_frame
from storage.registry.registry import CheckpointRegistry

REGISTRY, THREADS = "BENCH_REGISTRY", "BENCH_THREADS"
"""Environment variables: the registry's folder, threads of a forward pass."""
BATCH, DELAY = "BENCH_BATCH", "BENCH_DELAY_MS"
"""Environment variables: most images in a batch, longest wait for it to fill (milliseconds)."""
LARGE = 1 << 30
PNG_LEVEL = 1


class Work:
    """The serving version, and what is done with it."""

    def __init__(self) -> None:
        torch.set_num_threads(int(os.environ[THREADS]))
        registry = CheckpointRegistry(Path(os.environ[REGISTRY]))
        ref = registry.serving()
        if ref is None:
            raise RuntimeError(f"{registry.root}: no version serves")
        self.network, self.manifest = load_version(registry, ref.version, torch.device("cpu"))

    def segment(self, contents: Sequence[bytes]) -> list[bytes]:
        """Return the PNG mask of each image file; all images have one size."""
        photos = [decode_image(content, max_bytes=LARGE, max_pixels=LARGE) for content in contents]
        size = self.manifest.input_height, self.manifest.input_width
        frames = [fit_frame(pixels, *size) for pixels in photos]
        labels = segment_fitted(self.network, frames, [(pixels.shape[0], pixels.shape[1]) for pixels in photos])
        return [_png(one) for one in labels]


def _png(labels: torch.Tensor) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(labels.numpy()).save(stream, "PNG", compress_level=PNG_LEVEL)
    return stream.getvalue()
