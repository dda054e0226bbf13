"""The plane's threads: started nice or not they run, a bug in one batch ends none, and one that ended is seen."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from daemon.serving.follower import NICENESS, be_nice


@pytest.mark.skipif(not hasattr(os, "setpriority"), reason="no priorities here")
@pytest.mark.parametrize(("started", "expected"), [(0, NICENESS), (NICENESS + 5, NICENESS + 5)])
def test_a_process_that_was_started_nicer_stays_so(started: int, expected: int) -> None:
    # To lower niceness is refused to everybody but root: the thread would end before its first look at the ref.
    def niceness() -> int:
        thread = threading.get_native_id()
        os.setpriority(os.PRIO_PROCESS, thread, max(started, os.getpriority(os.PRIO_PROCESS, thread)))
        be_nice()
        return os.getpriority(os.PRIO_PROCESS, thread)

    if os.getpriority(os.PRIO_PROCESS, 0) > NICENESS:
        expected = max(expected, os.getpriority(os.PRIO_PROCESS, 0))
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(niceness).result(10) == expected
