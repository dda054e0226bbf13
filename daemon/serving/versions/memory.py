"""Garbage of swaps, collected at a time and a price that requests do not feel.

What Python cannot free by counting references (errors and what they refer to) waits for a collection of the oldest
objects, which comes when they grew by a quarter. Libraries bring 400,000: it came after a thousand swaps, 30 MiB later,
and held the interpreter for 0.3 s. Frozen, they neither count nor are looked at, and a collection takes milliseconds.
"""

import gc


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
