"""The daemon's self-check: whether what is on the disk is still what was written, looked at once an hour."""

import time

from daemon.metrics import ProcessMetrics
from daemon.runtime.logs import get_logger
from daemon.status.collect import check_serving_files
from storage.checking import check_state
from storage.errors import StorageError
from storage.layout import StateLayout
from storage.registry.registry import CheckpointRegistry

SELF_CHECK_SECONDS = 3600.0
"""Time between two checks (seconds)."""

log = get_logger(__name__)


class SelfCheck:
    """Does what `mfmd check` does, and hashes the weights of the version that should serve."""

    def __init__(self, layout: StateLayout, metrics: ProcessMetrics) -> None:
        self._layout, self._metrics = layout, metrics
        self.problem = ""
        """What the last check found, with what to do; empty when nothing is wrong."""

    def step(self) -> float:
        """Check; return the seconds until the next check."""
        errors = [problem for problem in check_state(self._layout) if problem.severity == "error"]
        found = [f"{error.path}: {error.detail}; {error.remedy}" for error in errors]
        if not found:
            try:
                check_serving_files(CheckpointRegistry(self._layout.checkpoints), content=True)
            except StorageError as error:
                found = [str(error)]
        for problem in found:
            log.error("self_check_found", problem=problem)
        at = time.strftime("%Y-%m-%d %H:%M", time.localtime())
        more = f"; {len(found) - 1} more: `mfmd check`" if found[1:] else ""
        self.problem = f"the self-check of {at} found an error: {found[0]}{more}" if found else ""
        self._metrics.self_check_errors.set(len(found))
        self._metrics.self_checked.set_to_current_time()
        return SELF_CHECK_SECONDS
