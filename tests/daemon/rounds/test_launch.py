"""How a round is started: its command and its environment."""

import sys
from pathlib import Path

from daemon.rounds.environment import MEMORY_KEPT, round_environment
from daemon.rounds.launch import launch_command


def test_the_command_hands_the_spec_to_accelerate(make_settings, tmp_path, monkeypatch):
    spec = tmp_path / "spec.json"
    command = launch_command(make_settings().round, spec)
    assert command[:4] == [sys.executable, "-P", "-m", "accelerate.commands.launch"]
    assert command[-3:] == ["-m", "adapters.round", str(spec)]
    assert "--cpu" in command
    assert Path(command[command.index("--config_file") + 1]).parent.name == "configs", "not the user's own"
    assert command[command.index("--num_cpu_threads_per_process") + 1] == "1"
    many = launch_command(
        make_settings(round={"processes": 2, "device": "auto", "mixed_precision": "bf16"}).round, spec
    )
    assert "--multi_gpu" in many
    assert many[many.index("--num_processes") + 1] == "2"
    assert many[many.index("--mixed_precision") + 1] == "bf16"
    own = launch_command(make_settings(round={"advanced": {"accelerate_config": tmp_path / "a.yaml"}}).round, spec)
    assert own[own.index("--config_file") + 1] == str(tmp_path / "a.yaml")
    assert "--num_processes" not in own


def test_a_round_is_given_the_variables_that_it_needs_and_no_others(make_settings):
    given = {"PATH": "/bin", "LC_ALL": "C", "CUDA_VISIBLE_DEVICES": "", "NCCL_DEBUG": "INFO", "HF_HOME": "/hf",
             "https_proxy": "p", "PYTHONPATH": "/own", "LD_LIBRARY_PATH": "/cuda", "_MFMD_UMASK": "22"}  # fmt: skip
    foreign = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "4", "MASTER_ADDR": "a", "MASTER_PORT": "1",
               "OMP_NUM_THREADS": "7", "ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "TORCHELASTIC_RUN_ID": "x",
               "OMPI_COMM_WORLD_SIZE": "4", "SLURM_NTASKS": "4", "PYTHONWARNINGS": "error", "DS_KEY": "k"}  # fmt: skip
    settings = make_settings().round
    assert round_environment(settings, {**given, **foreign}).items() >= given.items()
    assert not round_environment(settings, {**given, **foreign}).keys() & foreign.keys()
    named = make_settings(round={"advanced": {"environment": ["DS_*"]}}).round
    assert round_environment(named, foreign)["DS_KEY"] == "k"


def test_a_round_keeps_the_memory_that_it_frees_unless_the_user_says_otherwise(make_settings, monkeypatch):
    for name in MEMORY_KEPT:
        monkeypatch.delenv(name, raising=False)
    assert round_environment(make_settings().round).items() >= MEMORY_KEPT.items()
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "131072")
    assert round_environment(make_settings().round)["MALLOC_TRIM_THRESHOLD_"] == "131072"
