"""Averages and agreement over processes, with two real ones, and with one, where nothing happens."""

from pathlib import Path

import pytest
import torch
from accelerate.accelerator import Accelerator
from accelerate.utils import DistributedType

from adapters.errors import AdapterError
from adapters.networks.parallel import agree, average_buffers, average_gradients, check_replicated, mean_count
from tests.adapters.rounds import parallel_process
from tests.adapters.rounds.forked_rounds import both_do


def test_two_processes_average_and_agree(tmp_path: Path) -> None:
    both_do(parallel_process.main, tmp_path / "log")


def test_one_process_changes_nothing() -> None:
    accelerator, layer = Accelerator(cpu=True), torch.nn.BatchNorm1d(2)
    layer.weight.grad = torch.ones(2)
    average_gradients(accelerator, layer.parameters())
    average_buffers(accelerator, layer)
    assert layer.weight.grad.tolist() == [1.0, 1.0] and layer.bias.grad is None
    assert agree(accelerator, 2, 0.25) == (2, 0.25)


def test_split_networks_are_refused(monkeypatch) -> None:
    accelerator = Accelerator(cpu=True)
    check_replicated(accelerator)
    monkeypatch.setattr(accelerator.state, "distributed_type", DistributedType.FSDP)
    with pytest.raises(AdapterError, match=r"accelerate_config.*FSDP"):
        check_replicated(accelerator)


def test_one_process_counts_its_own_positions() -> None:
    counted = torch.tensor([[True, False], [True, True]])
    assert mean_count(counted).item() == 3.0
    assert mean_count(torch.zeros(2, 2, dtype=torch.bool)).item() == 1.0  # no division by 0
