"""A worker thread: it goes on after an error, stops when it must, and shows when it is stuck."""

import threading

import pytest

from daemon.metrics import Metrics
from daemon.runtime import logs
from daemon.runtime.backoff import Backoff
from daemon.runtime.worker import Worker
from storage.errors import DurabilityLost, StorageError

FAST = Backoff(base=0.05, cap=0.2)


@pytest.fixture
def worker(make_settings):
    made = []

    def make(step, **options) -> Worker:
        meter = Metrics(make_settings()).process
        made.append(Worker("ingest", step, meter, Backoff(base=0.01, cap=0.02), **options))
        return made[-1]

    yield make
    for item in made:
        item.ask_to_stop()
        item.join()


def test_a_worker_goes_on_after_an_error_and_says_so(worker, wait_until):
    calls = []

    def step() -> float:
        calls.append(1)
        if len(calls) < 3:
            raise ValueError("a bug")
        return 0.01

    part = worker(step)
    part.start()
    wait_until(lambda: len(calls) > 4)
    assert part.last_error is None
    assert not part.failed
    assert part._meter.failed_steps.labels(component="ingest")._value.get() == 2


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), StorageError("a: damaged"), KeyError("bug")])
def test_an_error_that_lasts_is_logged_once_a_minute_with_a_traceback_only_for_a_bug(
    worker, wait_until, caplog, error, monkeypatch
):
    def step() -> float:
        raise error

    part = worker(step)
    part.start()
    failed = part._meter.failed_steps.labels(component="ingest")._value
    wait_until(lambda: failed.get() >= 5)
    assert [record.msg["exc_info"] for record in caplog.records] == [isinstance(error, KeyError)]
    monkeypatch.setattr(logs, "LASTING_SECONDS", 0.0)
    wait_until(lambda: len(caplog.records) >= 2)


def test_a_worker_stops_for_good_when_an_fsync_was_lost(worker, wait_until):
    def step() -> float:
        raise DurabilityLost("fsync failed")

    part = worker(step)
    part.start()
    wait_until(lambda: part.failed)
    wait_until(lambda: not part.alive)
    assert part.last_error == "fsync failed"


def test_a_worker_wakes_and_stops_at_once(worker, wait_until):
    seen = threading.Event()
    calls = []

    def step() -> float:
        calls.append(1)
        seen.set()
        return 600.0

    wake = threading.Event()
    part = worker(step, wake=wake)
    part.start()
    wait_until(seen.is_set)
    wake.set()
    wait_until(lambda: len(calls) == 2)
    part.ask_to_stop()
    assert part.join()


def test_a_worker_whose_step_does_not_end_is_stuck_and_is_not_waited_for_for_ever(worker, wait_until):
    end = threading.Event()
    part = worker(lambda: end.wait() or 0.0, stuck_seconds=0.05, join_seconds=0.05)
    part.start()
    assert not part.stuck
    wait_until(lambda: part.stuck)
    part.ask_to_stop()
    assert not part.join()
    end.set()
    wait_until(lambda: not part.alive)
