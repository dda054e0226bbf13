"""Small videos for tests, made with PyAV: every frame is of one grey, which tells its number."""

import io

import numpy as np

GREY_STEP = 20
TOLERANCE = 6
"""By how much a codec may change a grey; neighbours differ by more than twice that."""


def grey_of(number: int) -> int:
    """The grey of a frame."""
    return (number * GREY_STEP) % 250


def make_video(
    frames: int = 35, *, rate: int = 10, container: str = "mp4", codec: str = "libx264", height: int = 24,
    width: int = 40, first: int = 0, created: str = "", still: int | None = None,
) -> bytes:  # fmt: skip
    """A video of `frames` frames, `rate` a second, whose greys begin with that of number `first`.

    `still`: all show one picture of noise instead, which follows from that number.
    """
    import av

    file = io.BytesIO()
    with av.open(file, "w", format=container) as output:
        if created:
            output.metadata["creation_time"] = created
        stream = output.add_stream(codec, rate=rate, options={"preset": "ultrafast"} if codec == "libx264" else {})
        stream.height, stream.width, stream.pix_fmt, stream.gop_size = height, width, "yuv420p", 10
        for number in range(first, first + frames):
            pixels = np.full((height, width, 3), grey_of(number), np.uint8)
            if still is not None:
                pixels = np.random.default_rng(still).integers(0, 256, pixels.shape, np.uint8)
            output.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        output.mux(stream.encode())
    return file.getvalue()
