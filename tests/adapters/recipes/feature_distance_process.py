"""One of two processes started by test_feature_distance.py: half a batch each must give the whole batch's gradient."""

import torch

from adapters.augmentation.augment import normalise_unit, to_unit
from adapters.networks.parallel import average_gradients
from adapters.networks.step_rng import StepRng
from adapters.networks.training_pass import encode
from adapters.recipes.feature_distance import FeatureDistance
from tests.adapters.recipes.recipe_steps import batch, frozen, gradients, inputs_of, network

THINGS = torch.tensor([1, 3])


def main() -> None:
    """What each of the two does."""
    student, other, step = network(), frozen(network(), seed=1), batch(4)
    inputs = inputs_of(student, name="daformer", thing_classes=("class 1", "class 3"))
    rank, images = inputs.accelerator.process_index, normalise_unit(to_unit(step.source.images))
    labels = step.source.labels.long()
    things = torch.isin(labels[:, ::32, ::32], THINGS)
    assert inputs.accelerator.num_processes == 2
    assert things[:2].sum() != things[2:].sum(), "the halves must differ for this to show anything"

    difference = student.encode(images)[-1] - other.encode(images)[-1]
    difference.square().sum(1).sqrt()[things].mean().backward()
    whole = gradients(student)

    student.zero_grad()
    rows = slice(2 * rank, 2 * rank + 2)
    encoded = encode(student, images[rows], StepRng(0))
    FeatureDistance(inputs, other)(encoded, labels[rows]).backward()
    average_gradients(inputs.accelerator, student.parameters())
    for one, both in zip(whole, gradients(student), strict=True):
        torch.testing.assert_close(both, one, rtol=1e-3, atol=1e-6)
    inputs.accelerator.end_training()
