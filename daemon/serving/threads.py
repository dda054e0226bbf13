"""A thread of the inference plane: it ends only when it is told to, and shows when a bug ended it."""

import os
import threading

NICENESS = 5
"""Nice value of threads that yield to serving, and of the threads that torch starts for them."""


class PlaneThread(threading.Thread):
    """Its `run` goes on until `stopping` is set."""

    def __init__(self, name: str) -> None:
        super().__init__(name=name, daemon=True)
        self.stopping = threading.Event()

    def stop(self, timeout: float) -> None:
        """Let it end; gives up after `timeout` seconds."""
        self.stopping.set()
        if self.is_alive():
            self.join(timeout)

    @property
    def dead(self) -> bool:
        """Whether it ended although nobody stopped it."""
        return self.ident is not None and not self.is_alive() and not self.stopping.is_set()


def be_nice() -> None:
    """Raise the nice value of the calling thread to `NICENESS`, where the system has priorities per thread (Linux).

    A process with a higher nice value keeps it, because not every user may lower it.
    """
    if hasattr(os, "setpriority"):
        thread = threading.get_native_id()
        os.setpriority(os.PRIO_PROCESS, thread, max(NICENESS, os.getpriority(os.PRIO_PROCESS, thread)))
