"""One of two processes started by test_parallel.py: exchanges tensors and prints nothing unless an assertion fails."""

import torch
from accelerate.accelerator import Accelerator
from torch import nn

from adapters.augmentation.augment import class_mask
from adapters.networks.batch_norm import batch_norm_layers
from adapters.networks.options import apply_options
from adapters.networks.parallel import agree, average_buffers, average_gradients, check_replicated, sum_over_processes
from adapters.networks.step_rng import StepRng
from adapters.self_training.pseudo_labels import pseudo_label
from configs.round import RoundSettings
from tests.adapters.recipes.adaptation_steps import network as small_network
from tests.adapters.recipes.adaptation_steps import recipe_of


class NoData(Accelerator):
    """An accelerator whose device can only be told what to do, never asked for a value."""

    @property
    def device(self) -> torch.device:
        return torch.device("meta")


class OnGpu(Accelerator):
    """An accelerator that says it works on a GPU."""

    @property
    def device(self) -> torch.device:
        return torch.device("cuda")


def main() -> None:
    """What each of the two does."""
    # Not "gloo" alone: as with NCCL, the default group is none that `agree` may take for one of the CPU.
    torch.distributed.init_process_group("cpu:gloo")
    accelerator = Accelerator(cpu=True)
    check_replicated(accelerator)
    assert accelerator.num_processes == 2
    mine = float(accelerator.process_index)  # 0 and 1
    network = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    parameters = list(network.parameters())
    for number, parameter in enumerate(parameters[:-1]):
        parameter.grad = torch.full_like(parameter, number + mine)
    average_gradients(accelerator, parameters)
    assert [parameter.grad.unique().tolist() for parameter in parameters[:-1]] == [[0.5], [1.5], [2.5]]
    assert parameters[-1].grad is None
    assert agree(NoData(cpu=True), 3 * mine, 0.5 - mine) == (3.0, 0.5)
    check_running_statistics(accelerator)
    check_statistics_recipe(accelerator)
    check_shared_counts(accelerator.process_index)
    check_batch_norm()
    accelerator.end_training()


def check_running_statistics(accelerator: Accelerator) -> None:
    """Mean and variance of all that both processes saw: the variance is also that of their means."""
    generator = torch.Generator().manual_seed(2)
    seen = torch.randn(2, 500, 2, generator=generator, dtype=torch.float64) + torch.tensor([[[0.0]], [[4.0]]])
    layer = nn.BatchNorm1d(2).double()
    layer.running_mean.copy_(seen[accelerator.process_index].mean(dim=0))
    layer.running_var.copy_(seen[accelerator.process_index].var(dim=0, correction=0))
    layer.num_batches_tracked.fill_(7)
    average_buffers(accelerator, nn.Sequential(layer))
    torch.testing.assert_close(layer.running_mean, seen.mean(dim=(0, 1)))
    torch.testing.assert_close(layer.running_var, seen.var(dim=(0, 1), correction=0))
    assert layer.num_batches_tracked == 7
    before = [buffer.clone() for buffer in layer.buffers()]
    average_buffers(accelerator, layer)  # alike already, as with SyncBatchNorm
    assert all(torch.equal(*pair) for pair in zip(before, layer.buffers(), strict=True))
    plain = nn.Linear(2, 2)
    weights = {name: value.clone() for name, value in plain.state_dict().items()}
    average_buffers(accelerator, plain)  # nothing to average, and nothing is
    assert all(torch.equal(value, weights[name]) for name, value in plain.state_dict().items())


def check_statistics_recipe(accelerator: Accelerator) -> None:
    """BN statistics mixes the released ones with those of both processes together, not with each one's own."""
    recipe = recipe_of(small_network(), name="bn_statistics", statistics_prior=3.0)
    layers, mine = batch_norm_layers(recipe.student), float(accelerator.process_index)
    recipe.load_state_dict({**recipe.state_dict(), "crops": 1})
    released = [(layer.running_mean.clone(), layer.running_var.clone()) for layer in layers]
    for layer in layers:
        layer.running_mean.fill_(4.0 * mine)
        layer.running_var.fill_(1.0)
    finished = batch_norm_layers(recipe.finished())
    for layer, (mean, variance) in zip(finished, released, strict=True):
        torch.testing.assert_close(layer.running_mean, 0.25 * 2.0 + 0.75 * mean)
        torch.testing.assert_close(layer.running_var, 0.25 * (1.0 + 4.0) + 0.75 * variance)


def check_shared_counts(rank: int) -> None:
    """What one process would say of the whole batch, each says of its half: sums, the ratio q, ClassMix."""
    assert sum_over_processes(torch.tensor([1, rank])).tolist() == [2, 1]
    generator = torch.Generator().manual_seed(1)
    mine = slice(2 * rank, 2 * rank + 2)
    logits = 3 * torch.randn(4, 3, 8, 8, generator=generator)
    valid = torch.ones(4, 8, 8, dtype=torch.bool)
    valid[0, :5] = False  # so that the halves have other numbers of pixels
    # Both processes give the whole batch here: sums double, ratios and sets stay what they are in one process.
    whole = pseudo_label(logits, valid, valid, 0.9)
    half = pseudo_label(logits[mine], valid[mine], valid[mine], 0.9)
    assert torch.equal(half.kept_ratio, whole.kept_ratio) and torch.equal(half.weight, whole.weight[mine])
    labels = torch.arange(7).repeat_interleave(5)[: 4 * 8].view(4, 8, 1)  # the halves have other classes
    masks = class_mask(labels, StepRng(3))
    assert torch.equal(class_mask(labels[mine], StepRng(3, rank=rank, processes=2)), masks[mine])


def check_batch_norm() -> None:
    """On GPUs it becomes torch's, with the same parameters under the same names; on CPUs it stays as it is."""
    on, off = RoundSettings(), RoundSettings.model_validate({"advanced": {"sync_batch_norm": False}})
    for settings, accelerator, kind in (
        (on, Accelerator(cpu=True), nn.BatchNorm2d),
        (off, OnGpu(cpu=True), nn.BatchNorm2d),
        (on, OnGpu(cpu=True), nn.SyncBatchNorm),
    ):
        network = small_network()
        expected, parameters = network.state_dict(), [*network.parameters()]
        images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        before = network.eval()(images)
        apply_options(network, settings, accelerator)
        assert {type(layer) for layer in batch_norm_layers(network)} == {kind}
        assert all(one is other for one, other in zip(network.parameters(), parameters, strict=True))
        assert network.state_dict().keys() == expected.keys()
        torch.testing.assert_close(network.eval()(images), before)  # alone: nothing is exchanged in eval mode
