"""Garbage of both planes, collected at a time and a price that requests do not feel.

What Python cannot free by counting references (errors and what they refer to) waits for a collection of the oldest
objects, which comes when they grew by a quarter, and holds all threads. Libraries bring 400,000 to the inference
plane: it came after a thousand swaps, 30 MiB later, and took 0.3 s. They bring 100,000 to the daemon: each took 0.08 s.
Frozen, they neither count nor are looked at, and a collection takes milliseconds.
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
    """Leave all that exists now out of garbage collection for good; once, before the process answers requests."""
    gc.collect()
    gc.freeze()
