"""How long to wait after repeated failure: exponential, capped, with jitter so that nothing retries in step."""

import random
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Backoff:
    """Delays of one kind of retry."""

    base: float
    """Delay after the first failure (seconds)."""
    cap: float
    """Longest delay (seconds)."""
    jitter: float = 0.0
    """Each delay is scaled by a random factor within 1 +- this (0-1)."""

    def delay(self, failures: int) -> float:
        """Delay after `failures` failures in a row (seconds); 0 after none."""
        if failures <= 0:
            return 0.0
        delay = min(self.cap, self.base * 2.0 ** min(failures - 1, 62))
        return delay * random.uniform(1.0 - self.jitter, 1.0 + self.jitter)
