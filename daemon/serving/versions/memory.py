"""Keep memory flat: glibc gives every thread a heap of its own, and what one thread frees is of no use to another.

Measured over 80 swaps of a network of 0.5 M parameters: 402 to 411 MiB without the limit, 398 to 398 with it
(`benchmarks/serving.py --parts swaps` measures it under load, docs/explanation/benchmarks.md has the figures). A swap
runs beside requests, which makes the heaps larger and more fragmented than either does alone. So free memory is
returned after each swap.

What Python cannot free by counting references (errors and what they refer to) waits for a collection of the oldest
objects, which comes when they grew by a quarter. Libraries bring 400,000: it came after a thousand swaps, 30 MiB later,
and held the interpreter for 0.3 s. Frozen, they neither count nor are looked at, and a collection takes milliseconds.
"""

import ctypes
import gc

M_ARENA_MAX = -8
"""The parameter of glibc's `mallopt` that bounds how many heaps there are."""
ARENAS = 2


def limit_arenas() -> bool:
    """Let threads share two heaps from now on; False where the C library has no such limit (musl, macOS).

    To be called before threads start: heaps that exist already stay.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(mallopt(M_ARENA_MAX, ARENAS))


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
