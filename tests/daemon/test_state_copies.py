"""A copied state directory has nothing to do with the daemon of the original, although both run on one machine."""

import itertools
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import httpx
import psutil
import pytest
import yaml

from adapters.checkpoints.checkpoint import save_weights
from adapters.networks.build import build_network
from daemon.cli import main
from daemon.runtime.process_group import children_of
from daemon.runtime.run_record import current_record
from daemon.status.collect import collect_status
from storage.checking import check_state, repair_state
from storage.directory.backup import write_backup
from storage.directory.restore import restore_backup
from storage.layout import StateLayout
from storage.registry.registry import CheckpointRegistry
from storage.rounds.folder import RoundStore
from tests.daemon.running import Running
from tests.daemon.traps import Traps
from tests.forking import CONTEXT

COPIES = 50
"""Most attempts at a copy; nearly every one is whole."""
SECTIONS = {
    "serving": {"enabled": True},
    "observe": {"enabled": True},
    "round": {"steps": 100_000, "advanced": {"save_steps": 1}},
}


def _copy_of(config, layout, tmp_path):
    """A copy of the living state directory, and a configuration that names it."""
    copy = StateLayout(tmp_path / "copy" / "state")
    copy.root.parent.mkdir()
    for _ in range(COPIES):  # a round that saves its state meanwhile takes files away from under `cp`
        shutil.rmtree(copy.root, ignore_errors=True)
        done = subprocess.run(["cp", "-a", layout.root, copy.root], capture_output=True, text=True)
        if done.returncode == 0:
            break
    assert done.returncode == 0, done.stderr
    values = yaml.safe_load(config.read_text())
    path = copy.root.parent / "mfmd.yaml"
    path.write_text(yaml.safe_dump({**values, "state": str(copy.root), "observe": {"enabled": False}}))
    return copy, path


def _new_state(layout, settings, config) -> None:
    """A state directory that only commands have written to, with a version that a plane and a round can load."""
    shutil.rmtree(layout.root)
    weights = config.parent / "weights.safetensors"
    save_weights(build_network(settings.network.architecture(), len(settings.classes)), weights)
    command = CONTEXT.Process(target=main, args=(["import", str(weights), "--config", str(config)],))
    command.start()
    command.join(100)
    assert CheckpointRegistry(layout.checkpoints).serving_version() == 1


def _open_to_others(layout) -> list[str]:
    """What other users may read, or the group may change. A running round removes files meanwhile."""
    found = []
    for path in (layout.root, *layout.root.rglob("*")):
        with suppress(FileNotFoundError):
            if path.stat().st_mode & 0o027:
                found.append(str(path))
    return found


def _work(children: list[psutil.Process]) -> set[str]:
    """What the living ones among these processes do."""
    names = {"serve", "observe", "adapters.round"}
    return {word for child in children if child.is_running() for word in child.cmdline() if word in names}


@pytest.mark.slow
def test_a_daemon_on_a_copy_touches_no_process_of_the_original(
    start, config, layout, drop, write_image, make_settings, tmp_path
):
    """The copy is made while plane, observer and a round run; then it gets a daemon of its own.

    Beside that, nobody else can read what they all write: frames are private images.
    """
    path = config(**SECTIONS)
    _new_state(layout, make_settings(), path)
    for number in range(8):
        write_image(drop / f"{number}.png", number)
    traps = Traps(tmp_path)
    original = start(path, cwd=traps.folder)
    original.wait(lambda: collect_status(make_settings()).buffer.frames == 8, "eight frames")
    plane = original.wait(lambda: current_record(layout, "serve"), "the inference plane")
    assert original.request("POST", "/v1/rounds").status_code == 202
    rounds = RoundStore(layout.rounds)
    original.wait(lambda: rounds.numbers() and rounds.folder(1).states.steps(), "a state of the round")
    children = [*children_of(layout)]
    copy, copied_config = _copy_of(path, layout, tmp_path)
    of_copy = make_settings(**SECTIONS).model_copy(update={"state": copy.root})
    assert current_record(copy, "serve") is None
    assert not collect_status(of_copy).plane.up
    second = Running(copied_config, copy)
    try:
        url = f"http://127.0.0.1:{plane.port}/healthz"
        second.wait(lambda: httpx.get(url).status_code == 200 and current_record(copy, "serve"), "a plane of its own")
        assert collect_status(of_copy).plane.port == current_record(copy, "serve").port != plane.port
        assert collect_status(make_settings()).plane.port == plane.port
    finally:
        assert second.stop()[0] == 0
    assert _work(children) == {"serve", "observe", "adapters.round"}
    assert "leftover_child_ended" not in second.log.read_text()
    assert not any(children_of(copy))
    assert _open_to_others(layout) == []
    assert original.stop()[0] == 0
    assert _open_to_others(layout) == []
    assert not traps.imported, "the original runs in a directory full of modules"


@contextmanager
def _load(drop, write_image, registry) -> Iterator[None]:
    """Images come, so that frames are evicted all the time, and the serving version moves."""
    end = threading.Event()

    def work() -> None:
        for number in itertools.count():
            if end.is_set():
                return
            write_image(drop / f"{number}.png", number)
            if number % 5 == 4:
                registry.promote(1 + number // 5 % 2, by="operator", reason="load")

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join()


def _tarred(layout, copy) -> list:
    """A plain tar, which says that files changed; what it got of evicted frames is repaired."""
    copy.root.mkdir()
    command = "tar -C {} --warning=none -cf - . | tar -C {} -xf -"
    subprocess.run(command.format(layout.root, copy.root), shell=True, capture_output=True)
    return [problem for problem in repair_state(copy, read_data=True).left if problem.severity == "error"]


def _backed_up(layout, copy) -> list:
    """`mfmd backup`: nothing needs repair."""
    file = copy.root.with_suffix(".tar")
    done = write_backup(layout, file)
    assert done.frames > 0 and done.missing == 0
    restore_backup(file, copy)
    return [problem for problem in check_state(copy, read_data=True) if problem.severity == "error"]


@pytest.mark.nightly
@pytest.mark.parametrize("copied", [_tarred, _backed_up])
def test_copies_under_load_restore(
    start, config, layout, registry, add_version, drop, write_image, make_settings, tmp_path, copied
):
    for _ in range(2):
        add_version()
    path = config(buffer={"capacity_frames": 64})
    running, settings = start(path), make_settings(buffer={"capacity_frames": 64})
    evicted = 0
    with _load(drop, write_image, registry):
        for number in range(8):
            enough = evicted + 64
            running.wait(lambda enough=enough: collect_status(settings).buffer.evicted_total > enough, "evictions")
            evicted = collect_status(settings).buffer.evicted_total
            copy = StateLayout(tmp_path / f"copy-{number}")
            assert copied(layout, copy) == []
            assert collect_status(settings.model_copy(update={"state": copy.root})).buffer.frames <= 64
    assert running.stop()[0] == 0
    values = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump({**values, "state": str(copy.root)}))
    second = Running(path, copy)
    assert second.request("GET", "/readyz").status_code == 200
    assert second.stop()[0] == 0
