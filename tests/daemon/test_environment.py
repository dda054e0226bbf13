"""A daemon and a real round in the worst surroundings: a directory full of modules, variables of other programs.

Plane and observer in such a directory: test_state_copies.py.
"""

import os

import pytest
import yaml

from adapters.checkpoints.checkpoint import save_weights
from adapters.networks.build import build_network
from daemon.status.collect import collect_status
from storage.registry.manifest import Manifest
from storage.rounds.folder import RoundStore
from storage.rounds.verdict import ENDED
from tests.daemon.traps import Traps

LAUNCHERS = {
    "RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "4", "NODE_RANK": "1", "GROUP_RANK": "1",
    "MASTER_ADDR": "10.255.255.1", "MASTER_PORT": "1", "ACCELERATE_USE_DEEPSPEED": "true", "FSDP_VERSION": "2",
    "ACCELERATE_USE_FSDP": "true", "ACCELERATE_DYNAMO_BACKEND": "INDUCTOR", "TORCHELASTIC_RUN_ID": "none",
    "TORCHELASTIC_USE_AGENT_STORE": "True", "PMI_RANK": "1", "PMI_SIZE": "4", "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_RANK": "1", "MV2_COMM_WORLD_SIZE": "4", "MPI_LOCALNRANKS": "x", "SLURM_NTASKS": "4",
    "SLURM_PROCID": "1", "ACCELERATE_CONFIG_FILE": "/nowhere", "PARALLELISM_CONFIG_TP_SIZE": "4",
}  # fmt: skip
LINKS = {
    "MFMD_SERVICE_HOST": "10.96.0.7", "MFMD_SERVICE_PORT": "8009", "MFMD_PORT": "tcp://10.96.0.7:8009",
    "MFMD_PORT_8009_TCP": "tcp://10.96.0.7:8009", "MFMD_PORT_8009_TCP_PROTO": "tcp", "MFMD_PORT_8009_TCP_PORT": "8009",
    "MFMD_PORT_8009_TCP_ADDR": "10.96.0.7", "MFMD_SERVING_PORT": "tcp://10.96.0.7:8009",
}  # fmt: skip
ODD = {
    "PYTHONWARNINGS": "error", "PYTHONSTARTUP": "/nowhere.py", "PYTHONHASHSEED": "3",
    "PYTHONUTF8": "0", "LANG": "C", "LC_ALL": "C", "OMP_NUM_THREADS": "abc", "COLUMNS": "0", "NO_COLOR": "1",
    "http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9", "all_proxy": "http://127.0.0.1:9",
    "CUDA_VISIBLE_DEVICES": "", "MFMD_CONFIG": "",
}  # fmt: skip


@pytest.fixture
def home(tmp_path):
    """A home with the `accelerate config` of another project, which no round may read."""
    home = tmp_path / "home"
    folder = home / ".cache/huggingface/accelerate"
    folder.mkdir(parents=True)
    values = {"compute_environment": "LOCAL_MACHINE", "distributed_type": "FSDP", "num_processes": 4, "older_key": 1}
    (folder / "default_config.yaml").write_text(yaml.safe_dump(values))
    return home


def test_a_daemon_does_its_work_in_the_worst_surroundings(
    start, config, layout, drop, write_image, make_settings, registry, tmp_path, home
):
    traps, sections = Traps(tmp_path), {"videos": {"enabled": True}, "round": {"device": "auto"}}
    settings = make_settings(**sections)
    _release(settings, registry, tmp_path / "weights.safetensors")
    for number in range(8):
        write_image(drop / f"{number}.png", number)
    environment = {**os.environ, **LAUNCHERS, **LINKS, **ODD, "HOME": str(home)}
    running = start(config(**sections), cwd=traps.folder, env=environment)
    running.wait(lambda: collect_status(settings).buffer.frames == 8, "eight frames")
    assert running.request("POST", "/v1/rounds").json() == {"round": 1}
    rounds = RoundStore(layout.rounds)
    running.wait(lambda: rounds.numbers() and rounds.folder(1).record().stage in ENDED, "the verdict")
    folder = rounds.folder(1)
    assert folder.verdict().decision in ("promoted", "rejected"), folder.log.read_text()
    assert folder.scores().status == "completed", folder.log.read_text()
    assert [(child.name, child.restarts) for child in collect_status(settings).children] == [("frames", 0)]
    status, _ = running.stop()
    assert status == 0, running.log.read_text()[-3000:]
    assert not traps.imported


def _release(settings, registry, weights) -> None:
    """A version that a plane and a round can load."""
    architecture = settings.network.architecture()
    save_weights(build_network(architecture, len(settings.classes)), weights)
    manifest = Manifest(
        origin="import",
        parent=None,
        created=1.0,
        network=architecture.model_dump(mode="json"),
        classes=tuple(entry.model_dump() for entry in settings.classes),
        input_height=32,
        input_width=48,
    )
    version = registry.add(weights, manifest, by="import").version
    registry.promote(version, by="import", reason="test")
