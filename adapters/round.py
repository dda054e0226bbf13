"""One round of self-training: `accelerate launch -m adapters.round rounds/000017/spec.json`.

It reads the spec, trains, scores, and writes `candidate.safetensors` and, last, `scores.json` to the folder of the
spec. Progress is written to `progress.jsonl`, the training state to `state/`. SIGTERM ends it after the current step.
When it is restarted on the same spec, it continues from the newest state.

Exit status: 0 when the round ended by itself, also when it was stopped or the loss was not finite or too high
(`scores.json` says which); 1 when something broke (traceback on stderr, `scores.json` says failed); 2 for wrong
arguments.
"""

import os
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import NoReturn

from adapters.rounds.stop import StopRequest
from adapters.tracing.spans import exported, span
from storage.layout import StateLayout, end_without_daemon


def main(arguments: list[str]) -> int:
    """Run the round of the one argument, the path of its `spec.json`; returns the exit status."""
    if len(arguments) != 1:
        print("usage: accelerate launch -m adapters.round ROUND_FOLDER/spec.json", file=sys.stderr)
        return 2
    first = os.environ.get("RANK", "0") == "0"  # set by the launcher of several processes
    traced = exported("round", joins=True) if first else nullcontext()
    with StopRequest() as stop, traced, span("mfmd.round.process"):
        end_without_daemon(StateLayout(Path(arguments[0]).resolve().parents[2]))
        from adapters.rounds.run import train_and_score  # loads torch for seconds: SIGTERM must be heard before

        return train_and_score(Path(arguments[0]), stop)


def leave(status: int) -> NoReturn:
    """End this process without the interpreter's teardown.

    During teardown a thread of gloo that still releases a tensor aborts the process (pytorch pull request 179291), and
    then the launcher ends all others.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    leave(main(sys.argv[1:]))
