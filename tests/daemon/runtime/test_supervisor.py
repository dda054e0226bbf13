"""Children: started again with growing delays, stopped with everything they started."""

import itertools
import os
import signal
import socket
import subprocess
import sys
import time

import httpx
import pytest

from daemon.runtime import heartbeat
from daemon.runtime import supervisor as supervisor_module
from daemon.runtime.activity import Activity, ActivityWriter
from daemon.runtime.backoff import Backoff
from daemon.runtime.heartbeat import BeatProbe
from daemon.runtime.process_group import ProcessGroup, children_of, group_alive
from daemon.runtime.supervisor import ChildSpec, Supervisor
from daemon.status.collect import collect_status
from tests.daemon.runtime.programs import SLEEP, python

FAST = Backoff(base=0.05, cap=0.2)


@pytest.fixture
def supervise(layout, wait_until):
    running = []

    def make(*specs: ChildSpec, backoff: Backoff = FAST) -> Supervisor:
        supervisor = Supervisor(specs, layout, backoff)
        running.append(supervisor)
        return supervisor

    yield make
    for supervisor in running:
        for child in supervisor._children:
            if child.group is not None:
                child.group.kill()
        supervisor.terminate()
        supervisor.finish()


def _until(supervisor: Supervisor, condition, wait_until) -> None:
    wait_until(lambda: (supervisor.step(), condition(supervisor.states()[0]))[1])


def test_a_child_that_ends_is_started_again_with_growing_delays(supervise, tmp_path, wait_until):
    log = tmp_path / "starts"
    code = "import sys, time; open(sys.argv[1], 'a').write(f'{time.time()} '); sys.exit(3)"
    supervisor = supervise(ChildSpec("crash", python(code, str(log))), backoff=Backoff(base=0.1, cap=10.0))
    _until(supervisor, lambda state: state.restarts >= 3 and not state.running, wait_until)
    assert supervisor.states()[0].last_exit == 3
    starts = [float(word) for word in log.read_text().split()]
    pauses = [later - sooner for sooner, later in itertools.pairwise(starts)]
    assert all(pause >= least for pause, least in zip(pauses, (0.1, 0.2, 0.4), strict=True))


def test_it_does_not_run_before_its_delay_is_over(supervise, wait_until):
    supervisor = supervise(ChildSpec("crash", python("raise SystemExit(1)")), backoff=Backoff(30.0, 60.0))
    _until(supervisor, lambda state: state.last_exit == 1, wait_until)
    for _ in range(20):
        supervisor.step()
    state = supervisor.states()[0]
    assert not state.running
    assert state.restarts == 0
    assert 0 < state.next_start - time.time() <= 30


def test_a_child_killed_from_outside_comes_back(supervise, wait_until):
    supervisor = supervise(ChildSpec("sleep", python(SLEEP)))
    _until(supervisor, lambda state: state.running, wait_until)
    first = supervisor.states()[0].pid
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: not supervisor.states()[0].running)  # seen by who looks, before the next step
    _until(supervisor, lambda state: state.running and state.pid != first, wait_until)
    assert supervisor.states()[0].restarts == 1
    assert supervisor.states()[0].last_exit == -signal.SIGKILL


def test_a_program_that_does_not_exist_is_tried_again(supervise, wait_until):
    supervisor = supervise(ChildSpec("none", ["/does/not/exist"]))
    supervisor.step()
    state = supervisor.states()[0]
    assert not state.running
    assert state.next_start is not None


def test_a_child_ends_when_no_daemon_holds_its_state_directory_any_more(layout, wait_until):
    code = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from storage.layout import StateLayout, end_without_daemon\n"
        "end_without_daemon(StateLayout(Path(sys.argv[1])), 0.5)\n"
        "Path(sys.argv[2]).touch()\n"
        "time.sleep(600)"
    )
    ready = layout.root / "ready"
    command = [sys.executable, "-c", code, str(layout.root), str(ready)]
    with layout.lock():
        child = ProcessGroup(layout, command)
        wait_until(ready.exists)
        assert not child.wait(1.0), "its daemon lives"
    assert child.wait(30.0) and child.poll() == -signal.SIGTERM
    ready.unlink()
    with layout.lock():
        replaced = ProcessGroup(layout, command)
        wait_until(ready.exists)
    layout.lock_file.unlink()
    with layout.lock():
        assert replaced.wait(30.0) and replaced.poll() == -signal.SIGTERM, "a new lock file is another daemon's"
    ready.unlink()
    alone = subprocess.Popen(command)
    wait_until(ready.exists)
    with pytest.raises(subprocess.TimeoutExpired):
        alone.wait(1.0)
    alone.kill()
    alone.wait()


def test_stop_ends_all_and_starts_nothing_again(supervise, layout):
    supervisor = supervise(ChildSpec("a", python(SLEEP)), ChildSpec("b", python(SLEEP)))
    supervisor.step()
    groups = [state.pid for state in supervisor.states()]
    supervisor.terminate()
    supervisor.finish()
    assert not any(group_alive(group) for group in groups)
    supervisor.step()
    assert [state.running for state in supervisor.states()] == [False, False]
    assert not any(children_of(layout))


def test_each_child_is_given_its_own_time_to_end(supervise, layout, tmp_path, wait_until):
    """One that finishes its work is waited for, though another has been killed long before."""
    log = tmp_path / "log"
    slow = f"open({str(log)!r}, 'a').write('ready\\n'); import time; time.sleep(600)"
    finishes = f"import signal, sys, time; signal.signal(15, lambda *_: (time.sleep(0.6), sys.exit(0))); {slow}"
    ignores = f"import signal; signal.signal(15, signal.SIG_IGN); {slow}"
    supervisor = supervise(
        ChildSpec("plane", python(finishes), grace_seconds=60.0),
        ChildSpec("stubborn", python(ignores), grace_seconds=0.1),
    )
    supervisor.step()
    wait_until(lambda: log.exists() and log.read_text().count("ready") == 2)
    plane, stubborn = (child.group for child in supervisor._children)
    beat = layout.beat_file("stubborn")
    beat.touch()
    supervisor.terminate()
    supervisor.finish()
    assert (plane.poll(), stubborn.poll()) == (0, -signal.SIGKILL)
    assert not beat.exists(), "who is killed cannot remove it"


ANSWERS = """
import http.server, sys
from pathlib import Path
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if Path(sys.argv[2]).exists() else 503)
        self.end_headers()
    def log_message(self, *_): pass
server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
Path(sys.argv[1]).write_text(str(server.server_port))
server.serve_forever()
"""


@pytest.fixture
def answering(supervise, tmp_path, monkeypatch, wait_until):
    """A supervised server that is asked for its health, and the file whose presence makes it ready."""
    monkeypatch.setattr(supervisor_module, "PROBE_SECONDS", 0.01)
    monkeypatch.setattr(supervisor_module, "HUNG_PROBES", 6)
    port, ready = tmp_path / "port", tmp_path / "ready"

    def probe(pid: int) -> str | None:
        try:
            answer = httpx.get(f"http://127.0.0.1:{port.read_text()}", timeout=0.2, trust_env=False)
        except (OSError, ValueError, httpx.TransportError):
            return None
        return "" if answer.is_success else "has no version loaded"

    command = python(ANSWERS, str(port), str(ready))
    supervisor = supervise(ChildSpec("plane", command, probe=probe, tells_ready=True))
    _until(supervisor, lambda state: state.problem == "has no version loaded", wait_until)
    ready.touch()
    _until(supervisor, lambda state: not state.problem, wait_until)
    return supervisor, ready


def test_a_child_with_a_probe_is_down_until_it_is_ready_again(answering, wait_until):
    supervisor, ready = answering
    ready.unlink()
    _until(supervisor, lambda state: state.problem == "has no version loaded", wait_until)
    ready.touch()
    _until(supervisor, lambda state: not state.problem, wait_until)
    os.kill(supervisor.states()[0].pid, signal.SIGKILL)
    wait_until(lambda: supervisor.states()[0].problem)
    problems = set()
    _until(supervisor, lambda state: not (state.problem and not problems.add(state.problem)), wait_until)
    assert problems <= {"ended", "ended with status -9", "starts"} and supervisor.states()[0].restarts == 1


def test_a_hung_child_is_reported_and_restarted(answering, wait_until):
    supervisor, _ = answering
    first = supervisor.states()[0].pid
    os.kill(first, signal.SIGSTOP)
    _until(supervisor, lambda state: state.problem == "does not answer", wait_until)
    assert supervisor.states()[0].running and supervisor.states()[0].hangs
    _until(supervisor, lambda state: not state.problem, wait_until)
    state = supervisor.states()[0]
    assert (state.restarts, state.last_exit) == (1, -signal.SIGKILL) and state.pid != first and not state.hangs


def test_why_a_child_ends_is_told_until_it_does_its_work(supervise, layout, config, make_settings, wait_until):
    """Here the port of the inference plane is taken, by this process."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        file = config(serving={"port": taken.getsockname()[1]})
        command = [sys.executable, "-P", "-m", "daemon.cli", "serve", "--config", str(file)]
        supervisor = supervise(ChildSpec("serve", command))
        _until(supervisor, lambda state: state.last_exit is not None, wait_until)
        (state,) = supervisor.states()
    assert state.last_exit == 1 and f"by process {os.getpid()} (" in state.reason
    with layout.lock():
        ActivityWriter(layout.run_file("activity"), lambda: Activity(children=[state])).step()
        (told,) = [message for message in collect_status(make_settings()).messages if "mfmd serve" in message]
    assert told.startswith(f"`mfmd serve` ended with status 1: {state.reason}; restart in ")
    _until(supervisor, lambda state: state.running, wait_until)
    os.kill(supervisor.states()[0].pid, signal.SIGKILL)
    _until(supervisor, lambda state: state.last_exit == -signal.SIGKILL, wait_until)
    assert not supervisor.states()[0].reason, "an end without a word is not explained by the one before"


BEATS = (
    "import pathlib, sys, time\n"
    "from daemon.runtime import heartbeat\n"
    "from storage.layout import StateLayout\n"
    "heartbeat.BEAT_SECONDS, heartbeat.STUCK_SECONDS = 0.02, 0.3\n"
    "with heartbeat.beating(StateLayout(pathlib.Path(sys.argv[1])), 'beats') as moved:\n"
    "    while not pathlib.Path(sys.argv[2]).exists(): moved(), time.sleep(0.01)\n"
    "    time.sleep(600)"
)


def test_a_child_that_does_not_beat_is_reported_and_restarted(supervise, layout, tmp_path, monkeypatch, wait_until):
    """Stopped as a whole, or with a loop that does not move."""
    for name, value in (("PROBE_SECONDS", 0.01), ("HUNG_PROBES", 6), ("SETTLED_SECONDS", 0.1)):
        monkeypatch.setattr(supervisor_module, name, value)
    monkeypatch.setattr(heartbeat, "LOST_SECONDS", 0.3)
    layout.beat_file("beats").touch()  # of one that was killed
    command = [sys.executable, "-c", BEATS, str(layout.root), str(tmp_path / "stuck")]
    supervisor = supervise(ChildSpec("beats", command, probe=BeatProbe(layout, "beats")))
    supervisor.step()
    assert supervisor.states()[0].problem == "starts"
    _until(supervisor, lambda state: not state.problem, wait_until)
    os.kill(supervisor.states()[0].pid, signal.SIGSTOP)
    _until(supervisor, lambda state: state.hangs and state.problem == "does not answer", wait_until)
    _until(supervisor, lambda state: state.restarts == 1 and not state.problem, wait_until)
    (tmp_path / "stuck").touch()
    _until(supervisor, lambda state: state.hangs, wait_until)
    _until(supervisor, lambda state: state.last_exit == -signal.SIGKILL and state.restarts == 2, wait_until)


def test_a_child_that_crashes_again_and_again_is_never_up_in_between(supervise, wait_until):
    supervisor = supervise(ChildSpec("crash", python("import time; time.sleep(0.1)")))
    supervisor.step()
    assert supervisor.states()[0].problem == "", "at its first start it has done nothing wrong"
    _until(supervisor, lambda state: not state.running, wait_until)
    seen = set()
    _until(supervisor, lambda state: seen.add(state.problem) or state.restarts > 2, wait_until)
    assert "" not in seen


def test_a_child_without_a_probe_is_up_once_it_has_settled(supervise, monkeypatch, wait_until):
    monkeypatch.setattr(supervisor_module, "SETTLED_SECONDS", 0.1)
    supervisor = supervise(ChildSpec("sleep", python(SLEEP)))
    supervisor.step()
    os.kill(supervisor.states()[0].pid, signal.SIGKILL)
    _until(supervisor, lambda state: state.restarts == 1, wait_until)
    assert supervisor.states()[0].problem
    _until(supervisor, lambda state: not state.problem, wait_until)


def test_backoff_is_capped_and_jittered():
    assert Backoff(1.0, 60.0).delay(0) == 0.0
    assert Backoff(1.0, 60.0).delay(500) == 60.0
    delays = {Backoff(10.0, 60.0, jitter=0.2).delay(1) for _ in range(50)}
    assert len(delays) > 10
    assert all(8.0 <= delay <= 12.0 for delay in delays)
