"""Processes of tests fork from one that has loaded what they need: loading torch takes longer than a tiny round.

Python has one fork server in each process, and loads what the last list given to it names: hence one list, here, of all
tests that want processes. What is forked has started nothing: no thread, no group of processes, no buffer. It is a
process like any other, to be killed and waited for.
"""

import multiprocessing
import sys

CONTEXT = multiprocessing.get_context("forkserver")
PRELOADED = (
    *("tests.faults.world", "av", "tests.adapters.rounds.forked_rounds", "adapters.rounds.run"),
    *("adapters.networks.encoders.mit", "adapters.networks.encoders.dinov2", "adapters.recipes.foundation"),
    *("torch._dynamo", "adapters.networks.multi_resolution"),
)
"""Loaded before the first fork; a job of a test lies in one of them, or its process loads the test's own imports."""
CONTEXT.set_forkserver_preload(list(PRELOADED))


def exit_with_number_missing() -> None:
    """A process that ends with the number of modules that it would still have to load."""
    sys.exit(sum(name not in sys.modules for name in PRELOADED))
