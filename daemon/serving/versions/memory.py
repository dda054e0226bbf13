"""Keep memory flat over swaps.

A swap runs beside requests, which makes the heaps larger and more fragmented than either does alone. So free memory is
returned after each swap. How many heaps glibc keeps is left to `MALLOC_ARENA_MAX` (2 in the container image): over 100
swaps under load the plane had 436 MiB without it and 426 MiB with it.

What Python cannot free by counting references (errors and what they refer to) waits for a collection of the oldest
objects, which comes when they grew by a quarter. Libraries bring 400,000: it came after a thousand swaps, 30 MiB later,
and held the interpreter for 0.3 s. Frozen, they neither count nor are looked at, and a collection takes milliseconds.
"""

import ctypes
import gc


def give_back() -> None:
    """Give free pages back to the system, where the C library can; the next requests take them again, a bit slower."""
    if (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:
        trim(0)


def collect_garbage() -> None:
    """Collect garbage where `freeze_heap` made that cheap; elsewhere nothing.

    It takes 2 ms. Not for a thread of low priority: it would hold the interpreter while it waits for a core, and all
    requests with it.
    """
    if gc.get_freeze_count():
        gc.collect()


def freeze_heap() -> None:
    """Leave all that exists now out of garbage collection for good; for the first version's load, before it serves."""
    gc.collect()
    gc.freeze()
