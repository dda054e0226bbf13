"""The daemon's self-check finds damage that nothing else has touched yet, and status, log and metrics say so."""

import pytest

from daemon.metrics import Metrics
from daemon.runtime.activity import Activity
from daemon.status import collect
from daemon.status.collect import collect_status
from daemon.status.self_check import SELF_CHECK_SECONDS, SelfCheck


def _flip(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda _, registry: None, ""),
        (lambda _, registry: _flip(registry.weights_path(2)), "version 2 should serve, but is damaged: "),
        (lambda _, registry: registry.weights_path(1).write_bytes(b""), "000001: "),
        (lambda layout, _: next((layout.frames_zarr / "frames").glob("c.*")).unlink(), "frame 1 "),
    ],
    ids=["whole", "a bit of what serves", "an older version", "a frame"],
)
def test_damage_is_found_and_told_with_its_remedy(
    bench, layout, registry, add_version, drop, write_image, monkeypatch, caplog, damage, said
):
    add_version()
    add_version(parent=1)
    world = bench()
    write_image(drop / "a.png", 0)
    world.until(lambda: world.counts.frames == 1)
    damage(layout, registry)
    metrics = Metrics(world.settings)
    check, value = SelfCheck(layout, metrics.process), metrics.registry.get_sample_value
    assert value("mfmd_self_check_last_timestamp_seconds") == 0
    assert check.step() == SELF_CHECK_SECONDS
    assert value("mfmd_self_check_last_timestamp_seconds") > 1.5e9
    assert value("mfmd_self_check_errors") == bool(said)
    assert said in check.problem and bool(check.problem) == bool(said)
    monkeypatch.setattr(collect, "running_activity", lambda _: Activity(damage=check.problem))
    with layout.lock():
        messages = collect_status(world.settings).messages
    assert (check.problem in messages) == bool(said)
    assert caplog.text.count("self_check_found") == bool(said)
