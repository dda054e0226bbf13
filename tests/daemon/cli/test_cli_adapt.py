"""`mfmd adapt` runs a real round: in its own process, or through a real daemon; and `mfmd status --check` beside it."""

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from configs.load import load_settings
from configs.settings import Settings
from daemon.cli.adapt import _runs, _say_unsure
from daemon.control.client import ControlFailed
from daemon.exit_codes import ExitCode
from daemon.runtime.process_group import end_leftovers
from daemon.status.collect import collect_status
from storage.buffer.catalog_records import FileFact
from storage.buffer.frames import FrameBuffer, NewFrame
from storage.durable.digest import digest_of
from storage.layout import StateLayout
from storage.media.images import fit_frame
from storage.registry.registry import CheckpointRegistry
from storage.rounds.folder import RoundFolder, RoundStore
from storage.rounds.records import Progress, RoundSpec

CONFIG = """\
classes: demo
watch: {folder: drop, stability_seconds: 0.1, advanced: {rescan_seconds: 0.5}}
buffer: {height: 32, width: 32, capacity_frames: 32, reserve_bytes: 0, holdout_fraction: 0.4, advanced: {tile: 32}}
network: {name: deeplabv3plus, encoder: resnet_tiny, channels: 16}
mfm: {ablation: {dim: 16, heads: 4, blocks: 1}}
round: {steps: 1, device: cpu, advanced: {threads: 1}, crop_height: 32, crop_width: 32, batch_size: 1}
schedule: {enabled: false, min_frames: 12}
serving: {enabled: false}
observe: {enabled: false}
control: {port: 0}
"""
FRAMES = 16


@pytest.fixture
def adaptable(config: Path) -> Path:
    """A configuration whose registry serves a freshly drawn network."""
    from adapters.checkpoints.checkpoint import make_manifest, save_weights
    from adapters.networks.build import build_network

    config.write_text(CONFIG, encoding="utf-8")
    settings = load_settings(config)
    weights = config.parent / "model.safetensors"
    save_weights(build_network(settings.network.architecture(), len(settings.classes)), weights)
    registry = CheckpointRegistry(StateLayout(settings.state).checkpoints)
    manifest = registry.add(weights, make_manifest(settings, origin="pretrain"), by="test")
    registry.promote(manifest.version, by="test", reason="first")
    return config


def _images() -> Iterator[np.ndarray]:
    random = np.random.default_rng(0)
    blocks = (random.integers(0, 255, (4, 4, 3), dtype=np.uint8) for _ in range(FRAMES))
    return (block.repeat(8, 0).repeat(8, 1) for block in blocks)  # plain noise stays out of rounds


def _fill_buffer(config: Path) -> None:
    settings = load_settings(config)
    layout = StateLayout(settings.state)
    layout.create()
    frames = [
        NewFrame(
            file=FileFact(f"{number}.png", pixels.size, 0),
            digest=digest_of(pixels.tobytes()),
            captured_at=0.0,
            source_height=32,
            source_width=32,
            frame=fit_frame(pixels, 32, 32),
        )
        for number, pixels in enumerate(_images())
    ]
    with closing(FrameBuffer.open(layout, settings.buffer, writable=True)) as buffer:
        buffer.append(frames)


def _wait(what: str, true: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
        time.sleep(0.1)


@contextmanager
def _daemon(config: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A real `mfmd run`; stopped by SIGTERM at the end, which must be clean."""
    command = [sys.executable, "-m", "daemon.cli", "run", "--config", str(config)]
    with (config.parent / "run.log").open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                code = process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
    assert code == ExitCode.OK, (config.parent / "run.log").read_text()


def _check_verdict(code: int, out: str, config: Path) -> None:
    """A round really ran: its verdict has checks, and exit code and registry agree with it."""
    verdict = json.loads(out)
    assert len(verdict["checks"]) > 3
    assert code == (ExitCode.OK if verdict["decision"] == "accepted" else ExitCode.NOT_ACCEPTED)
    serving = CheckpointRegistry(StateLayout(load_settings(config).state).checkpoints).serving()
    assert serving is not None and serving.version == (verdict["version"] or 1)


def test_without_a_daemon_the_round_runs_here(mfmd, adaptable: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The round itself is real in the next test; here it crashes at once, which must cost nothing but the round."""
    answer = mfmd("adapt")
    assert answer.code == ExitCode.FAILURE and "error[not_enough_frames]: 0 frames" in answer.err
    _fill_buffer(adaptable)
    monkeypatch.setattr(
        "daemon.rounds.runner.launch_command", lambda *_: [sys.executable, "-c", "raise SystemExit('boom')"]
    )
    answer = mfmd("adapt")
    assert answer.code == ExitCode.FAILURE and answer.out == ""
    [line] = answer.err.splitlines()
    assert line.startswith("error[round_failed]: round 1 failed") and "boom" in line
    layout = StateLayout(load_settings(adaptable).state)
    assert not layout.locked()
    with closing(FrameBuffer.open(layout, load_settings(adaptable).buffer, writable=False)) as buffer:
        assert buffer.leases() == [] and len(buffer.records()) == FRAMES
    assert "round 1" in mfmd("status").out


FOREIGN_LAUNCHER = {
    "RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "192.0.2.1", "MASTER_PORT": "29500",
    "ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "TORCHELASTIC_RUN_ID": "none",
}  # fmt: skip
"""A process that `torchrun` or `accelerate launch` started as the second of two."""


def test_with_a_daemon_the_round_runs_there(mfmd, adaptable: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when a launcher started the daemon: the round waits for no rank of that launcher."""
    for name, value in FOREIGN_LAUNCHER.items():
        monkeypatch.setenv(name, value)
    assert mfmd("status", "--check").code == ExitCode.FAILURE
    for number, pixels in enumerate(_images()):
        Image.fromarray(pixels).save(adaptable.parent / "drop" / f"{number}.png")
    with _daemon(adaptable):
        settings = load_settings(adaptable)
        _wait("all frames", lambda: collect_status(settings).buffer.frames == FRAMES)
        check = mfmd("status", "--check")
        assert (check.code, check.out, check.err) == (ExitCode.OK, "", "")
        shown = mfmd("status").out
        assert f"{FRAMES} of 32 frames" in shown and "up since" in shown
        assert mfmd("run").code == ExitCode.ALREADY_RUNNING
        answer = mfmd("adapt", "--json")
        _check_verdict(answer.code, answer.out, adaptable)
    assert mfmd("status", "--check").code == ExitCode.FAILURE


def _start_long_round(config: Path) -> tuple[subprocess.Popen[str], RoundFolder]:
    """`mfmd adapt` beside a daemon, as soon as its round has saved a state."""
    settings = load_settings(config)
    layout = StateLayout(settings.state)
    _wait("the daemon", lambda: layout.run_file("daemon").exists())
    command = [sys.executable, "-m", "daemon.cli", "adapt", "--config", str(config)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    store = RoundStore(layout.rounds)
    _wait("a saved state", lambda: bool(store.numbers()) and bool(store.folder(1).states.steps()))
    return process, store.folder(1)


def _long_rounds(config: Path) -> None:
    long = "round: {steps: 100000, advanced: {save_steps: 1},"
    config.write_text(config.read_text().replace("round: {steps: 1,", long))
    _fill_buffer(config)


@pytest.mark.nightly
def test_asked_through_a_daemon_that_is_stopped_it_says_where_the_round_goes_on(adaptable: Path) -> None:
    _long_rounds(adaptable)
    with _daemon(adaptable):
        process, folder = _start_long_round(adaptable)
    _, error = process.communicate(timeout=30)
    assert process.returncode == ExitCode.FAILURE
    assert "error[round_suspended]: the daemon was stopped while round 1 ran" in error
    assert f"resumes it from step {max(folder.states.steps())}" in error
    assert folder.record().stage == "suspended"


@pytest.mark.nightly
def test_asked_through_a_daemon_that_is_killed_it_says_so(adaptable: Path) -> None:
    _long_rounds(adaptable)
    daemon = subprocess.Popen([sys.executable, "-m", "daemon.cli", "run", "--config", str(adaptable)])
    process, folder = _start_long_round(adaptable)
    daemon.kill()
    daemon.wait()
    _, error = process.communicate(timeout=30)
    end_leftovers(StateLayout(load_settings(adaptable).state), 30.0)
    assert process.returncode == ExitCode.FAILURE
    assert "error[round_suspended]: the daemon ended while round 1 ran" in error
    assert folder.record().stage == "training" and folder.verdict() is None


class Unanswered:
    """A client whose daemon closes every connection and never took back its address."""

    left = replaced = False

    def running_round(self) -> int | None:
        raise ControlFailed("the daemon does not answer: [Errno 104] Connection reset by peer")


def test_the_lock_of_a_killed_daemon_may_fall_after_its_connections(tmp_path: Path) -> None:
    layout = StateLayout(tmp_path)
    with ExitStack() as held:
        held.enter_context(layout.lock())
        dying = threading.Timer(0.3, held.pop_all().close)
        dying.start()
        assert not _runs(Unanswered(), layout, 1)
        dying.join()
    with layout.lock(), pytest.raises(ControlFailed, match="Connection reset"):
        _runs(Unanswered(), layout, 1)


def test_a_daemon_that_starts_up_or_is_stopped_is_not_called_late(mfmd, adaptable: Path) -> None:
    """It holds the lock and publishes no address, at either end of its life."""
    layout = StateLayout(load_settings(adaptable).state)
    with layout.lock():
        answer = mfmd("adapt")
    assert answer.code == ExitCode.FAILURE
    assert "error[control_failed]" in answer.err and "it is starting up or being stopped" in answer.err


@pytest.mark.parametrize(
    ("recipe", "kept", "said"),
    [
        ({"name": "dacs"}, 0.0, True),
        ({"name": "dacs"}, 0.1, False),
        ({"name": "dacs", "advanced": {"class_confidence": {"enabled": True}}}, 0.0, False),
        ({"name": "tent"}, 0.0, False),
    ],
)
def test_it_says_that_nothing_was_sure_where_only_sure_pixels_teach(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], recipe: dict, kept: float, said: bool
) -> None:
    recipe = {**recipe, "threshold": 0.9}
    settings = Settings.model_validate({"classes": "demo", "watch": {"folder": "drop"}, "recipe": recipe})
    about = {"incumbent": 1, "released": 1, "train_frames": (1,), "holdout_frames": (2,), "trigger": "manual"}
    spec = RoundSpec(round=1, settings=settings.model_dump(mode="json"), created=1.0, **about)
    folder = RoundStore(tmp_path).create(spec)
    folder.append_progress(Progress(at=1.0, phase="training", step=1, steps=2, kept_ratio=kept))
    folder.append_progress(Progress(at=2.0, phase="scoring", step=2, steps=2))
    _say_unsure(folder)
    assert ("recipe.threshold is 0.9. A lower one" in capsys.readouterr().out) == said


def test_without_a_checkpoint_it_says_what_to_do(mfmd, config: Path) -> None:
    for command in ("adapt", "run"):
        answer = mfmd(command)
        assert answer.code == ExitCode.NO_CHECKPOINT
        assert "error[no_checkpoint]" in answer.err and "mfmd import" in answer.err, command
