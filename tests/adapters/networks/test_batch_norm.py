"""Statistics estimated afresh: the plain mean over the batches, and nothing else changes."""

import pytest
import torch
from torch import nn

from adapters.networks.batch_norm import estimate_statistics
from adapters.networks.huggingface.pixels import SingleValueBatchNorm


@pytest.fixture
def network() -> nn.Sequential:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.BatchNorm2d(3), nn.Dropout(0.5), nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).eval()
    layers[0].running_mean.fill_(50.0)
    return layers


def test_statistics_are_the_mean_over_the_batches(network) -> None:
    batches = [torch.rand(2, 3, 8, 8) * scale for scale in (1.0, 2.0, 6.0)]
    estimate_statistics(network, batches)
    means = torch.stack([batch.mean((0, 2, 3)) for batch in batches]).mean(0)
    variances = torch.stack([batch.var((0, 2, 3)) for batch in batches]).mean(0)
    torch.testing.assert_close(network[0].running_mean, means)
    torch.testing.assert_close(network[0].running_var, variances)
    assert network[0].num_batches_tracked == 3


def test_weights_modes_and_momentum_stay(network) -> None:
    network[2].train()
    weights = [parameter.clone() for parameter in network.parameters()]
    estimate_statistics(network, [torch.rand(2, 3, 8, 8)])
    assert all(torch.equal(*pair) for pair in zip(weights, network.parameters(), strict=True))
    assert [layer.training for layer in network] == [False, False, True, False]
    assert network[0].momentum == 0.1


def test_dropout_is_off_meanwhile(network) -> None:
    found = []
    for _ in range(2):
        estimate_statistics(network, [torch.ones(2, 3, 8, 8).cumsum(2)])
        found.append(network[3].running_mean.clone())
    assert torch.equal(*found)


def test_modes_are_restored_after_an_error(network) -> None:
    with pytest.raises(RuntimeError):
        estimate_statistics(network, [torch.rand(2, 5, 8, 8)])
    assert not any(layer.training for layer in network.modules()) and network[0].momentum == 0.1


def test_network_without_batch_norm_reads_nothing() -> None:
    images = iter([torch.zeros(1, 3, 8, 8)])
    estimate_statistics(nn.Conv2d(3, 3, 1), images)
    assert next(images, None) is not None


def test_a_layer_that_meets_single_values_keeps_its_statistics() -> None:
    """UPerNet's pooled branch at one image a batch: there is nothing to estimate from, and 0 and 1 would be wrong."""
    layer = SingleValueBatchNorm(3)
    layer.running_mean.fill_(5.0)
    layer.running_var.fill_(0.01)
    network = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), layer)
    estimate_statistics(network, [torch.randn(1, 3, 4, 4) for _ in range(4)])
    assert layer.running_mean.tolist() == [5.0] * 3 and layer.running_var.tolist() == pytest.approx([0.01] * 3)
