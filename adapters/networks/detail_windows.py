"""Windows in which a multi-resolution network sees full scale: one random one in training, overlapping ones to answer.

HRDA (Hoyer et al., ECCV 2022, arXiv 2204.13132) uses half a training crop a side for both: the whole crop at half size,
and a window of half its sides at full size. The same rule holds here for an image of any size, so a frame is seen like
a training crop. The number of windows, and with it the cost in full images, does not grow with the frame.
"""

from adapters.draws import Draws
from adapters.networks.network import Window
from adapters.networks.pixels import MIN_SIDE

STEP = 8
"""Coordinates of a training window are multiples of this (pixels): cells of a stride-4 map of the half-size image."""


def view_size(size: tuple[int, int]) -> tuple[int, int]:
    """Return height and width of a window, and of the half-size image, for images of `size`: half, rounded up (pixels).

    The result is never below the smallest input of an encoder (`MIN_SIDE`) nor above the image: a small image is one
    window.
    """
    return _side(size[0]), _side(size[1])


def random_window(size: tuple[int, int], draws: Draws) -> Window:
    """Draw one window for a whole batch of images of `size`; its coordinates are multiples of `STEP`."""
    view = view_size(size)
    places = [(whole - part) // STEP + 1 for whole, part in zip(size, view, strict=True)]
    top, left = (STEP * int(count * draw) for count, draw in zip(places, draws.shared(2).tolist(), strict=True))
    return Window(top, left, *view)


def overlapped_windows(size: tuple[int, int]) -> tuple[Window, ...]:
    """Return windows over images of `size`, row by row, each overlapping its neighbours by half.

    The last ones end at the border. There are nine for all but small images.
    """
    height, width = view_size(size)
    rows, columns = _starts(size[0], height), _starts(size[1], width)
    return tuple(Window(top, left, height, width) for top in rows for left in columns)


def _side(whole: int) -> int:
    return min(whole, max(MIN_SIDE, (whole + 1) // 2))


def _starts(whole: int, part: int) -> list[int]:
    """Return the first pixels of the windows along one side."""
    return [*range(0, whole - part, (part + 1) // 2), whole - part]
