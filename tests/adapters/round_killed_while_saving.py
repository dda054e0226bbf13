"""A round that is killed in the middle of publishing its second state: `python round_killed_while_saving.py SPEC`."""

import os
import runpy
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from storage import durable

publish = durable.publish_directory


def publish_once(temp: Path, final: Path) -> None:
    """The first state is published; at the second one everything is written, and SIGKILL comes before its name."""
    if final.parent.name == "state" and list(final.parent.glob("[0-9]*")):
        os.kill(os.getpid(), signal.SIGKILL)
    publish(temp, final)


durable.publish_directory = publish_once
runpy.run_module("adapters.round", run_name="__main__")
