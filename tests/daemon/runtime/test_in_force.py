"""The settings in force: the file is compared with them, and only a reload changes them."""

import json
import os
import signal
import stat
import threading
from pathlib import Path

import pytest
import yaml

from configs.errors import ConfigError
from configs.load import load_settings
from daemon.runtime.activity import Activity, ActivityWriter
from daemon.runtime.in_force import SNAPSHOT, SettingsInForce, reloaded_on_hang_up, running_settings


@pytest.fixture
def file(make_settings, tmp_path):
    """Write the configuration file with these sections changed."""
    path = tmp_path / "mfmd.yaml"

    def write(**sections) -> Path:
        values = make_settings(**sections).model_dump(mode="json", exclude_none=True, exclude={"classes"})
        for section, fields in sections.items():
            values[section] |= fields  # secrets as they are
        path.write_text(yaml.safe_dump({**values, "classes": "demo"}))
        return path

    return write


@pytest.fixture
def in_force(file):
    path = file()
    return SettingsInForce(load_settings(path), path)


def test_an_edit_changes_nothing_but_what_is_said_of_the_file(in_force, file):
    before = in_force.now
    assert in_force.compare().model_dump(exclude={"file"}) == {"problem": "", "reload": [], "restart": []}
    path = file(gate={"confidence": 0.8}, serving={"port": 1234})
    said = in_force.compare()
    assert (said.file, said.problem, said.reload, said.restart) == (
        str(path), "", ["gate.confidence"], ["serving.port"],
    )  # fmt: skip
    path.write_text("classes: demo\nwatch: {folder: drop}\nsrving: {}\n")
    assert "srving: unknown key" in in_force.compare().problem
    path.unlink()
    assert "no such file" in in_force.compare().problem
    assert in_force.now is before
    file()
    assert not in_force.compare().problem


def test_a_reload_takes_over_what_is_live_and_names_the_rest(in_force, file):
    results = []
    in_force.after_reload = results.append
    file(gate={"confidence": 0.8}, serving={"port": 1234})
    done = in_force.reload()
    assert (done.applied, done.restart) == (["gate.confidence"], ["serving.port"])
    assert in_force.now.gate.confidence == 0.8 and in_force.now.serving.port != 1234
    assert (in_force.compare().reload, in_force.compare().restart) == ([], ["serving.port"])
    assert results == [True]


def test_a_file_that_is_replaced_behind_a_link_is_read_again(file):
    """Kubernetes updates a ConfigMap in this way: the file that was read first is removed."""
    path = file()
    link = path.with_name("link.yaml")
    link.symlink_to(path)
    in_force = SettingsInForce(load_settings(link), link)
    assert not in_force.compare().reload
    text = file(gate={"confidence": 0.8}).read_text()
    path.unlink()
    link.unlink()
    newer = path.with_name("newer.yaml")
    newer.write_text(text)
    link.symlink_to(newer)
    assert in_force.compare().reload == ["gate.confidence"] and not in_force.compare().problem


@pytest.mark.parametrize(
    ("sections", "says"),
    [({"gate": {"confidence": 7}}, "gate.confidence"), ({"gate": {"shadow_images": 5}}, "only a restart applies it")],
)
def test_a_reload_of_an_unusable_file_changes_nothing(in_force, file, sections, says):
    path = file(serving={"shadow_fraction": 0.5})
    values = yaml.safe_load(path.read_text())
    for section, fields in sections.items():
        values[section] |= fields
    path.write_text(yaml.safe_dump(values))
    before, results = in_force.now, []
    in_force.after_reload = results.append
    with pytest.raises(ConfigError, match=says):
        in_force.reload()
    assert in_force.now is before and results == [False]


def test_children_are_given_the_settings_with_their_token_and_not_the_daemons(file, layout, tmp_path):
    path = file(serving={"token": "for clients"}, control={"token": "for the operator"})
    in_force = SettingsInForce(load_settings(path), path)
    layout.create()
    snapshot = layout.run_file(SNAPSHOT)
    in_force.publish(snapshot)
    assert stat.S_IMODE(snapshot.stat().st_mode) == 0o600
    path.unlink()
    given = load_settings(snapshot)
    assert given.serving.token.get_secret_value() == "for clients" and given.control.token is None
    assert "for the operator" not in snapshot.read_text()
    wanted = in_force.now.model_copy(update={"control": given.control})
    assert given == wanted, "nothing else is lost on the way"
    file(serving={"token": "for clients"}, schedule={"new_frames": 77})
    in_force.reload()
    assert load_settings(snapshot).schedule.new_frames == 77


def test_commands_use_the_settings_of_the_daemon_that_runs(in_force, file, layout, monkeypatch):
    path = file()
    assert running_settings(path) == in_force.now, "none runs"
    with layout.lock():
        layout.create()
        in_force.publish(layout.run_file(SNAPSHOT))
        file(schedule={"new_frames": 77})
        assert running_settings(path) == in_force.now
        path.write_text("state: state\nwatch: [")
        with pytest.raises(ConfigError, match="not valid YAML"):
            running_settings(path)  # whose daemon it is, is not known yet
        ActivityWriter(layout.run_file("activity"), lambda: Activity(settings=in_force.compare())).step()
        assert running_settings(path) == in_force.now
        other = path.with_name("other.yaml")
        other.write_text("state: state\nwatch: [")
        with pytest.raises(ConfigError, match="other"):
            running_settings(other)
        monkeypatch.setenv("MFMD_STATE", str(layout.root))
        assert running_settings(other) == in_force.now, "the operator says which"
    with pytest.raises(ConfigError, match="not valid YAML"):
        running_settings(path)


def test_what_a_killed_daemon_left_is_not_taken_for_the_next_ones(in_force, file, layout):
    layout.create()
    in_force.publish(layout.run_file(SNAPSHOT))
    path = file(schedule={"new_frames": 77})
    with layout.lock():
        assert running_settings(path).schedule.new_frames == 77


def test_a_hang_up_reloads(in_force, file, capfd):
    reloads, before = [], signal.getsignal(signal.SIGHUP)
    in_force.after_reload = reloads.append
    file(gate={"confidence": 0.8})
    with reloaded_on_hang_up(in_force):
        os.kill(os.getpid(), signal.SIGHUP)
        while len(reloads) < 1:
            pass
        in_force.compare()
        Path(in_force.compare().file).write_text("nonsense")
        os.kill(os.getpid(), signal.SIGHUP)
        while len(reloads) < 2:
            pass
    assert reloads == [True, False] and in_force.now.gate.confidence == 0.8
    assert signal.getsignal(signal.SIGHUP) == before
    events = [json.loads(line)["event"] for line in capfd.readouterr().err.splitlines() if line.startswith("{")]
    assert "settings_reloaded" in events and "settings_not_reloaded" in events


def test_a_configuration_from_a_pipe_is_read_at_the_start_only(in_force, tmp_path):
    """As from `mfmd run --config <(...)` or a FIFO: to open it again may wait for ever."""
    (tmp_path / "mfmd.yaml").unlink()
    os.mkfifo(tmp_path / "mfmd.yaml")
    held = os.open(tmp_path / "mfmd.yaml", os.O_RDWR)
    os.write(held, b"classes: 3\n")
    writer = threading.Timer(5.0, os.close, [held])  # ends a wait in old code
    writer.start()
    assert "read again" in in_force.compare().problem
    with pytest.raises(ConfigError, match="read again"):
        in_force.reload()
    writer.cancel()
    os.close(held)
