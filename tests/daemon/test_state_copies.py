"""A copied state directory has nothing to do with the daemon of the original, although both run on one machine."""

import subprocess

import httpx
import psutil
import pytest
import yaml

from adapters.checkpoints.checkpoint import make_manifest, save_weights
from adapters.networks.build import build_network
from daemon.runtime.process_group import children_of
from daemon.runtime.run_record import current_record
from daemon.status.collect import collect_status
from storage.layout import StateLayout
from tests.daemon.running import Running


def _copy_of(config, layout, tmp_path):
    """A copy of the living state directory, and a configuration that names it."""
    copy = StateLayout(tmp_path / "copy" / "state")
    copy.root.parent.mkdir()
    subprocess.run(["cp", "-a", layout.root, copy.root], check=True)
    values = yaml.safe_load(config.read_text())
    path = copy.root.parent / "mfmd.yaml"
    path.write_text(yaml.safe_dump({**values, "state": str(copy.root)}))
    return copy, path


def _real_version(settings, registry, tmp_path) -> None:
    """A version whose weights a plane and a round can load."""
    weights = tmp_path / "weights.safetensors"
    save_weights(build_network(settings.network, len(settings.classes)), weights)
    version = registry.add(weights, make_manifest(settings, origin="pretrain"), by="pretrain").version
    registry.promote(version, by="pretrain", reason="test")


def _work(children: list[psutil.Process]) -> set[str]:
    """What the living ones among these processes do."""
    names = {"serve", "observe", "adapters.round"}
    return {word for child in children if child.is_running() for word in child.cmdline() if word in names}


@pytest.mark.slow
def test_a_daemon_on_a_copy_touches_no_process_of_the_original(
    start, config, layout, drop, write_image, registry, make_settings, tmp_path
):
    """The copy is made while plane, observer and a round run; then it gets a daemon of its own."""
    _real_version(make_settings(), registry, tmp_path)
    for number in range(8):
        write_image(drop / f"{number}.png", number)
    sections = {"serving": {"enabled": True}, "observe": {"enabled": True}, "round": {"steps": 100_000}}
    path = config(**sections)
    original = start(path)
    original.wait(lambda: collect_status(make_settings()).buffer.frames == 8, "eight frames")
    plane = original.wait(lambda: current_record(layout, "serve"), "the inference plane")
    assert original.request("POST", "/v1/rounds").status_code == 202
    original.wait(lambda: "adapters.round" in _work([*children_of(layout)]), "the round")
    children = [*children_of(layout)]
    copy, copied_config = _copy_of(path, layout, tmp_path)
    of_copy = make_settings(**sections).model_copy(update={"state": copy.root})
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
    assert original.stop()[0] == 0
