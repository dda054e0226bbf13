"""One round of self-training: `accelerate launch -m adapters.round rounds/000017/spec.json`.

Reads the spec, trains, scores, and leaves `candidate.safetensors` and, last, `scores.json` in the spec's folder;
progress goes to `progress.jsonl`, the training state to `state/`. SIGTERM ends it after the step at hand. Started again
on the same spec, it goes on from the newest state.

Exit status: 0 when the round came to an end of its own, also when it was stopped or the loss was not finite or too high
(`scores.json` says which); 1 when something broke (traceback on stderr, `scores.json` says failed); 2 for wrong
arguments.
"""

import os
import sys
from pathlib import Path
from typing import NoReturn

from adapters.rounds.stop import StopRequest


def main(arguments: list[str]) -> int:
    """Run the round of the one argument, the path of its `spec.json`; returns the exit status."""
    if len(arguments) != 1:
        print("usage: accelerate launch -m adapters.round ROUND_FOLDER/spec.json", file=sys.stderr)
        return 2
    with StopRequest() as stop:
        from adapters.rounds.run import run_round  # loads torch for seconds: SIGTERM must be heard before

        return run_round(Path(arguments[0]), stop)


def leave(status: int) -> NoReturn:
    """End this process without the interpreter's teardown, in which a thread of gloo that still lets go of a tensor
    aborts the process (pytorch pull request 179291), and with it the launcher ends all others.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    leave(main(sys.argv[1:]))
