"""`mfmd doctor`: every check turns bad when its thing is bad, and says what to do."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from configs.load import load_settings
from configs.settings import Settings
from daemon.doctor import Finding, Level, examine_file, examine_in_force
from daemon.doctor.disk import examine_state
from daemon.doctor.drop_folder import examine_drop_folder
from daemon.doctor.encoders import examine_encoders
from daemon.doctor.frames import examine_frames
from daemon.doctor.machine import examine_number_formats
from daemon.doctor.models import examine_models
from daemon.doctor.own_network import examine_own_network
from daemon.exit_codes import ExitCode
from daemon.runtime.activity import Activity, ActivityWriter
from daemon.runtime.in_force import SNAPSHOT, SettingsInForce, running_settings
from daemon.watch.mode import file_system_of
from storage.buffer.catalog_records import FileFact
from storage.buffer.frames import FrameBuffer, NewFrame
from storage.buffer.resize import resize_buffer
from storage.layout import StateLayout
from storage.media.images import fit_frame
from storage.registry.registry import CheckpointRegistry
from tests.sections import changed


def with_values(settings: Settings, section: str, **values: object) -> Settings:
    update: dict[str, object] = {section: changed(getattr(settings, section), **values)}
    return settings.model_copy(update=update)


def by_name(findings: list[Finding]) -> dict[str, Finding]:
    assert all(item.remedy for item in findings if item.level != Level.OK), "every problem has a remedy"
    return {item.name: item for item in findings}


def test_whole_command_with_nothing_there(mfmd, config: Path) -> None:
    """Machine, folder, disk and ports are fine; there is no checkpoint and no source."""
    answer = mfmd("doctor", "--json")
    report = json.loads(answer.out)
    levels = {check["name"]: check["level"] for check in report["checks"]}
    assert answer.code == ExitCode.FAILURE and report["ok"] is False
    assert [name for name, level in levels.items() if level == "fail"] == ["checkpoint"]
    assert levels["python"] == levels["torch"] == levels["packages"] == "ok" and "gpu" in levels
    assert levels["drop_folder"] == levels["fsync"] == levels["serving_port"] == "ok"
    assert levels["source"] == "warn"
    assert not (config.parent / "state").exists(), "the doctor leaves nothing behind"


def test_a_file_that_the_running_daemon_does_not_use_is_found(config: Path, settings: Settings) -> None:
    layout = StateLayout(settings.state)
    assert examine_file(config).level == Level.OK and examine_in_force(layout) == []
    in_force = SettingsInForce(settings, config)
    writer = ActivityWriter(layout.run_file("activity"), lambda: Activity(settings=in_force.compare()))
    with layout.lock():
        in_force.publish(layout.run_file(SNAPSHOT))
        writer.step()
        assert [item.level for item in examine_in_force(layout)] == [Level.OK]
        config.write_text(config.read_text().replace("serving: {port: 0", "gate: {confidence: 0.8}\nserving: {port: 1"))
        writer.step()
        found = by_name(examine_in_force(layout))["settings"]
        assert found.level == Level.WARN and "gate.confidence, serving.port" in found.detail
        assert found.remedy.endswith("a restart of the daemon for serving.port")
        config.write_text("nonsense")
        assert examine_file(config).level == Level.FAIL
        writer.step()
        assert running_settings(config) == settings, "the rest is examined as the daemon uses it"
    assert examine_in_force(layout) == [], "a killed daemon leaves its settings behind"


@pytest.mark.parametrize("how", ["shadows", "overwrites"])
def test_a_project_that_installs_packages_of_the_same_name(how: str, tmp_path: Path) -> None:
    if how == "shadows":
        (tmp_path / "adapters").mkdir()
        (tmp_path / "adapters" / "__init__.py").touch()
    else:
        record = tmp_path / "adapters-1.3.0.dist-info"
        record.mkdir()
        (record / "METADATA").write_text("Metadata-Version: 2.1\nName: adapters\nVersion: 1.3.0\n", encoding="utf-8")
        (record / "top_level.txt").write_text("adapters\n", encoding="utf-8")
    code = "from daemon.doctor.machine import examine_packages as x; [f] = x(); print(f.level, f.detail, f.remedy)"
    path = os.pathsep.join([str(tmp_path), str(Path(__file__).parents[3])])
    answer = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env={"PYTHONPATH": path}, capture_output=True, text=True, check=True
    )
    assert answer.stdout.startswith("fail") and "a separate environment" in answer.stdout
    ours = Path(__file__).parents[3] / "adapters"
    expected = {
        "shadows": f"{tmp_path}/adapters/__init__.py is found before {ours}",
        "overwrites": f"adapters 1.3.0 installs adapters too, at {ours}/__init__.py",
    }
    assert expected[how] in answer.stdout


def test_broken_torch_and_broken_configuration_are_both_found(
    mfmd, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config.write_text("classes: [", encoding="utf-8")
    monkeypatch.setattr("daemon.doctor.machine.PROBE", "raise ImportError('libtorch_cpu.so is missing')")
    answer = mfmd("doctor")
    assert answer.code == ExitCode.FAILURE
    assert "FAIL  configuration" in answer.out and "FAIL  torch" in answer.out and "libtorch_cpu.so" in answer.out
    assert "->" in answer.out and "2 of 4 checks failed" in answer.out


def test_bf16_on_a_cpu_that_has_it_emulated(settings: Settings, tmp_path: Path) -> None:
    info, wants = tmp_path / "cpuinfo", with_values(settings, "serving", precision="bf16", device="auto")
    info.write_text("processor\t: 0\nflags\t\t: fpu avx avx2\nprocessor\t: 1\n")
    (found,) = examine_number_formats(wants, False, info)
    assert found.level is Level.WARN and "serving.precision: bf16" in found.detail and found.remedy
    assert examine_number_formats(wants, True, info) == [], "device: auto takes the GPU"
    (found,) = examine_number_formats(with_values(wants, "serving", device="cpu"), True, info)
    assert found.level is Level.WARN
    (found,) = examine_number_formats(with_values(settings, "round", mixed_precision="bf16"), False, info)
    assert "round.mixed_precision: bf16" in found.detail
    assert examine_number_formats(settings, False, info) == []
    info.write_text("flags\t\t: fpu avx avx2 avx512_bf16\n")
    (found,) = examine_number_formats(wants, False, info)
    assert found.level is Level.OK
    assert examine_number_formats(wants, False, tmp_path / "none") == [], "no Linux: nothing is known"


def test_missing_drop_folder(settings: Settings) -> None:
    settings.watch.folder.rmdir()
    [finding] = examine_drop_folder(settings)
    assert finding.level == Level.FAIL and "does not exist" in finding.detail and "mkdir" in finding.remedy
    settings.watch.folder.write_text("file", encoding="utf-8")
    assert "not a folder" in examine_drop_folder(settings)[0].detail


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_unreadable_drop_folder(settings: Settings) -> None:
    settings.watch.folder.chmod(0)
    assert examine_drop_folder(settings)[0].level == Level.FAIL
    settings.watch.folder.chmod(0o700)


def test_folders_that_overlap_fail_by_the_names_of_both(config: Path) -> None:
    (config.parent / "drop").mkdir(exist_ok=True)
    (config.parent / "elsewhere").symlink_to("drop")
    text = config.read_text(encoding="utf-8")
    config.write_text(f"state: elsewhere/state\n{text}", encoding="utf-8")
    finding = examine_file(config)
    assert finding.level == Level.FAIL and "state: " in finding.detail and "watch.folder" in finding.detail


def test_inotify_counts_folders(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit = tmp_path / "limit"
    limit.write_text("4\n", encoding="ascii")
    monkeypatch.setattr("daemon.doctor.drop_folder.WATCH_LIMIT", limit)
    for name in ("a", "b"):
        (settings.watch.folder / name).mkdir()
    finding = by_name(examine_drop_folder(settings))["inotify"]
    assert finding.level == Level.WARN and "3 folders, limit 4" in finding.detail and "sysctl" in finding.remedy
    assert by_name(examine_drop_folder(with_values(settings, "watch", recursive=False)))["inotify"].level == Level.OK


def test_the_innermost_and_newest_mount_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert file_system_of(tmp_path) is not None
    table = (
        ("/", "ext4"),
        ("/mnt/nas", "nfs4"),
        ("/mnt/nas/local", "xfs"),
        ("/scratch", "ext4"),
        ("/scratch", "tmpfs"),
    )
    mounts = [SimpleNamespace(mountpoint=point, fstype=kind) for point, kind in table]
    monkeypatch.setattr("psutil.disk_partitions", lambda all: mounts)
    expected = {"/data": "ext4", "/mnt/nas/in": "nfs4", "/mnt/nasty": "ext4", "/mnt/nas/local/x": "xfs"}
    expected |= {"/scratch": "tmpfs"}
    assert {path: file_system_of(Path(path)) for path in expected} == expected


def test_without_a_mount_table_nothing_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(**_: object) -> None:
        raise FileNotFoundError("/proc/self/mounts")

    monkeypatch.setattr("psutil.disk_partitions", missing)
    assert file_system_of(tmp_path) is None


def test_network_mounts(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fine for the drop folder, whose rescan finds everything; not for the state, whose locks it would break."""
    for module in ("drop_folder", "disk"):
        monkeypatch.setattr(f"daemon.doctor.{module}.file_system_of", lambda path: "nfs4")
    assert by_name(examine_drop_folder(settings))["drop_folder_mount"].level == Level.WARN
    assert by_name(examine_state(settings))["state_mount"].level == Level.FAIL


def test_disk_space_against_reserve_and_buffer(settings: Settings) -> None:
    def level(**values: object) -> Level:
        return by_name(examine_state(with_values(settings, "buffer", **values)))["disk_space"].level

    assert level() == Level.OK
    assert level(capacity_frames=10**9) == Level.WARN
    assert level(reserve_bytes=10**18) == Level.FAIL


def test_fsync_that_fails_is_found(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(handle: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("os.fsync", broken)
    finding = by_name(examine_state(settings))["fsync"]
    assert finding.level == Level.FAIL and "Input/output error" in finding.detail


def test_checkpoint_is_verified(settings: Settings, registry: CheckpointRegistry) -> None:
    assert by_name(examine_models(settings))["checkpoint"].level == Level.OK
    other = settings.model_copy(update={"classes": settings.classes[:-1]})
    assert "other classes" in by_name(examine_models(other))["checkpoint"].detail
    registry.weights_path(2).write_bytes(b"damaged")
    damaged = by_name(examine_models(settings))["checkpoint"]
    assert damaged.level == Level.FAIL and "rollback" in damaged.remedy


def test_frames_that_are_not_made_alike_are_named(settings: Settings, registry: CheckpointRegistry) -> None:
    layout, buffer = StateLayout(settings.state), settings.buffer
    photo = fit_frame(np.full((20, 100, 3), 9, np.uint8), buffer.height, buffer.width)
    new = NewFrame(FileFact("wide.png", 1, 2), "0" * 64, 1.0, source_height=20, source_width=100, frame=photo)
    with FrameBuffer.open(layout, buffer, writable=True) as opened:
        opened.append([new])
    assert examine_frames(settings) == []
    other = with_values(settings, "buffer", fit="squash")
    found = by_name(examine_frames(other))
    assert found["frames"].detail.startswith("1 of 1 stored frames were not made with buffer.advanced {fit: squash,")
    assert f"mfmd buffer resize --height {buffer.height} --width {buffer.width}" in found["frames"].remedy
    assert "scaled to fit" in found["frames_served"].detail and "squashed" in found["frames_served"].detail
    resize_buffer(layout, other.buffer)
    assert list(by_name(examine_frames(other))) == ["frames_served"]


OWN = """
from torch import nn

class Net(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.down, self.up = nn.Conv2d(3, 4, 4, 4), nn.Conv2d(4, num_classes, 1)

    def encode(self, images):
        return (self.down(images),)

    def decode(self, features, size):
        return nn.functional.interpolate(self.up(features[0]), size)

build = Net
"""


def test_own_networks_are_built_and_those_of_the_registry_named(
    settings: Settings, registry: CheckpointRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "code").mkdir()
    (tmp_path / "code/an_unfinished.py").write_text(
        "def build(num_classes, depth):\n    return depth", encoding="utf-8"
    )
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'code'}:{os.environ.get('PYTHONPATH', '')}")
    manifest = registry.manifest(1)
    registry.add(
        registry.weights_path(1), manifest.model_copy(update={"network": {"name": "theirs.net:build"}}), by="x"
    )
    [found, other] = examine_own_network(
        changed(settings, network={"name": "an_unfinished:build", "options": {"depth": 3}})
    )
    assert (
        found.level is Level.FAIL and "an_unfinished:build returned a int, expected a torch.nn.Module" in found.detail
    )
    assert other.level is Level.WARN and "theirs.net:build" in other.detail
    (tmp_path / "code/an_unfinished.py").write_text(OWN, encoding="utf-8")
    mine = changed(settings, network={"name": "an_unfinished:build"})
    made = {"network": mine.network.architecture().model_dump(mode="json"), "network_code": "0" * 64}
    version = registry.add(registry.weights_path(1), manifest.model_copy(update=made), by="x").version
    found, code, _ = examine_own_network(mine)
    assert found.level is Level.OK and "keeps the contract: " in found.detail
    assert code.level is Level.WARN and f"versions {version} were registered with" in code.detail


def test_canary_images_are_counted_and_their_problems_named(config: Path) -> None:
    settings = load_settings(config)
    assert "canary" not in by_name(examine_models(settings))
    text = config.read_text(encoding="utf-8")
    config.write_text(text + "canary: {images: target, labels: truth}\n", encoding="utf-8")
    settings = load_settings(config)
    assert by_name(examine_models(settings))["canary"].level == Level.FAIL, "no such folder"
    for folder in ("target", "truth"):
        (config.parent / folder).mkdir()
    for number in range(5):
        Image.new("RGB", (8, 8)).save(config.parent / "target" / f"{number}.png")
        Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8) // 8).save(config.parent / f"truth/{number}.png")
    found = by_name(examine_models(settings))["canary"]
    assert found.level == Level.OK and found.detail.startswith("5 images") and "0  12.50 %  sky" in found.detail
    (config.parent / "target" / "4.png").unlink()
    few = by_name(examine_models(settings))["canary"]
    assert few.level == Level.WARN and few.remedy.startswith("1 more")
    Image.new("L", (9, 9)).save(config.parent / "truth" / "3.png")
    assert "3.png: 9x9 pixels" in by_name(examine_models(settings))["canary"].detail


def test_source_pairs_are_found(config: Path) -> None:
    config.write_text(config.read_text(encoding="utf-8") + "source: {images: day, labels: truth}\n", encoding="utf-8")
    settings = load_settings(config)
    assert by_name(examine_models(settings))["source"].level == Level.FAIL
    for folder in ("day", "truth"):
        (config.parent / folder).mkdir()
    for name in ("a", "b"):
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(config.parent / "day" / f"{name}.jpg")
        Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8) // 8).save(config.parent / "truth" / f"{name}.png")
    found = by_name(examine_models(settings))["source"]
    assert found.level == Level.OK and found.detail.startswith("2 images") and "0  12.50 %  sky" in found.detail
    Image.fromarray(np.full((8, 8), 255, np.uint8)).save(config.parent / "truth" / "b.png")
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8) // 10).save(config.parent / "truth" / "a.png")
    odd = by_name(examine_models(settings))["source"]
    assert odd.level == Level.WARN and "no label holds a pixel of person" in odd.detail and "b.jpg" in odd.detail
    Image.fromarray(np.full((8, 8), 77, np.uint8)).save(config.parent / "truth" / "b.png")
    outside = by_name(examine_models(settings))["source"]
    assert outside.level == Level.FAIL and "label value 77 at row 0, column 0" in outside.detail
    (config.parent / "truth" / "b.png").unlink()
    missing = by_name(examine_models(settings))["source"]
    assert missing.level == Level.FAIL and "b.jpg" in missing.detail


@pytest.fixture
def encoders(tmp_path: Path) -> Path:
    """`resnet`: weights of the tiny ResNet in two shards. `dinov2`: weights of a frozen DINOv2 that are cut off."""
    from adapters.networks.encoders.resnet import RESNET_SPECS, build_resnet

    spec, weights = RESNET_SPECS["resnet_tiny"], build_resnet("resnet_tiny", 32, (4,), None).model.state_dict()
    sizes = {"embedding_size": spec.stem, "hidden_sizes": spec.widths, "depths": spec.depths}
    configs = {"resnet": {"layer_type": "basic", **sizes}, "dinov2": {}}
    for kind, values in configs.items():
        (tmp_path / kind).mkdir()
        (tmp_path / kind / "config.json").write_text(json.dumps({"model_type": kind, **values}))
    parts = {name: f"{len(name) % 2}.safetensors" for name in weights}
    for file in set(parts.values()):
        shard = {name: value.numpy() for name, value in weights.items() if parts[name] == file}
        save_file(shard, tmp_path / "resnet" / file, {"format": "pt"})
    (tmp_path / "resnet/model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": parts}))
    whole = (tmp_path / "resnet/0.safetensors").read_bytes()
    (tmp_path / "dinov2/model.safetensors").write_bytes(whole[:-1])
    return tmp_path


def with_encoders(settings: Settings, pretrained: Path, frozen: Path, **network: object) -> Settings:
    foundation = {"enabled": True, "directory": str(frozen)}
    return changed(
        settings, network={"pretrained": pretrained, **network}, recipe={"advanced": {"foundation": foundation}}
    )


def test_directories_of_weights_are_read_by_their_loaders(settings: Settings, encoders: Path) -> None:
    assert examine_encoders(settings) == []
    resnet = {"name": "deeplabv3plus", "encoder": "resnet_tiny"}
    found = by_name(examine_encoders(with_encoders(settings, encoders / "resnet", encoders / "dinov2", **resnet)))
    network, frozen = found["pretrained"], found["foundation"]
    assert network.level is Level.OK and f"weights in {encoders / 'resnet'} fit" in network.detail
    assert "network.encoder resnet_tiny; their values are read in training only" in network.detail
    assert frozen.level is Level.FAIL and "dinov2/model.safetensors: not a readable safetensors file" in frozen.detail
    assert frozen.detail.startswith("recipe.advanced.foundation.directory: ")


@pytest.mark.nightly
def test_directories_of_another_model_fail(settings: Settings, encoders: Path) -> None:
    for encoder, told in (
        ("mit_tiny", "a model of type 'resnet', network.encoder needs 'segformer'"),
        ("resnet18", "has embedding_size 32, network.encoder needs 64"),
    ):
        name = "daformer" if encoder == "mit_tiny" else "deeplabv2"
        wanted = with_encoders(settings, encoders / "resnet", encoders / "nowhere", name=name, encoder=encoder)
        found = by_name(examine_encoders(wanted))
        assert {finding.level for finding in found.values()} == {Level.FAIL}
        assert told in found["pretrained"].detail and found["pretrained"].detail.startswith("network.pretrained: ")
        assert "nowhere/config.json: cannot be read" in found["foundation"].detail
