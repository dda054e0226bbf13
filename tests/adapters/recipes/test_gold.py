"""GOLD-like rounds: directions from gradients, scales by the chain rule, and a student that stays a plain network."""

import pytest
import torch
from torch.func import functional_call
from torch.nn import functional as F

from adapters.augmentation.augment import normalise_unit, to_unit
from adapters.errors import NetworkMismatch
from adapters.recipes.gold import Directions, Gold, linear_classifier
from adapters.recipes.recipe import Recipe
from adapters.recipes.tent import norm_parameters
from adapters.rounds.optim import build_optimizer
from configs.network import OptimSettings
from tests.adapters.recipes.recipe_steps import CLASSES, batch, inputs_of, network, recipe_of

RATES = OptimSettings(learning_rate=1e-3)


def directions_of(recipe: Recipe) -> Directions:
    found = recipe.modules()["directions"]
    assert isinstance(found, Directions)
    return found


def optimizer_of(recipe: Recipe) -> torch.optim.Optimizer:
    return build_optimizer(recipe.student, RATES, added={"directions": directions_of(recipe)})


def train(recipe: Recipe, steps: int) -> None:
    optimizer = optimizer_of(recipe)
    for _ in range(steps):
        optimizer.zero_grad(set_to_none=True)
        recipe.step(batch())
        optimizer.step()
        recipe.after_step(optimizer)


def test_directions_follow_the_gradient_of_the_highest_logit() -> None:
    student = network()
    recipe = recipe_of(student, name="gold", threshold=0.0)
    rows = linear_classifier(student).weight.detach().flatten(1).clone()
    torch.testing.assert_close(directions_of(recipe).gram, rows.T @ rows)
    images = normalise_unit(to_unit(batch().target.images))
    labels = network()(images).argmax(dim=1).flatten()  # the teacher of the first step is the student
    recipe.step(batch())
    products = []
    for label in labels[::17].tolist():
        features = torch.randn(1, rows.shape[1], 1, 1, requires_grad=True)
        F.conv2d(features, rows[:, :, None, None])[0, label].sum().backward()  # linear: the features do not matter
        assert features.grad is not None
        products.append(torch.outer(features.grad.flatten(), features.grad.flatten()))
    shares = torch.bincount(labels, minlength=CLASSES) / len(labels)
    for label, product in zip(labels[::17].tolist(), products, strict=True):
        torch.testing.assert_close(product, torch.outer(rows[label], rows[label]))
    mean = sum(share * torch.outer(row, row) for share, row in zip(shares, rows, strict=True))
    torch.testing.assert_close(directions_of(recipe).gram, 0.98 * rows.T @ rows + 0.02 * mean)


def test_without_a_confident_pixel_directions_stay() -> None:
    recipe = recipe_of(network(), name="gold", threshold=1.0)
    before = directions_of(recipe).gram.clone()
    recipe.step(batch())
    torch.testing.assert_close(directions_of(recipe).gram, before)
    untrusted = batch()
    nowhere = torch.zeros_like(untrusted.target.trusted)
    recipe = recipe_of(network(), name="gold", threshold=0.0)
    recipe.step(untrusted._replace(target=untrusted.target._replace(trusted=nowhere)))
    torch.testing.assert_close(directions_of(recipe).gram, before)


def test_scales_get_the_gradient_of_features_along_the_directions() -> None:
    """The reference changes the features, f + V (s * V^T f), and lets torch derive by s."""
    student = network()
    recipe = recipe_of(student, name="gold", advanced={"classmix": False}, threshold=0.0)
    term, step = directions_of(recipe), batch()
    with torch.no_grad():
        term.scales.copy_(torch.linspace(-0.3, 0.4, len(term.scales)))
        term.write(linear_classifier(student).weight)
    images, labels = normalise_unit(to_unit(step.source.images)), step.source.labels.long()
    scales = term.scales.detach().clone().requires_grad_(True)
    plain = network()
    layer = linear_classifier(plain)
    layer.register_forward_pre_hook(
        lambda _, inputs: inputs[0] + torch.einsum("cr,r,dr,bdhw->bchw", term.axes, scales, term.axes, inputs[0])
    )
    plain.requires_grad_(False)
    F.cross_entropy(plain(images), labels).backward()
    F.cross_entropy(student(images), labels).backward()
    term.take_gradient(linear_classifier(student).weight)
    assert term.scales.grad is not None and scales.grad is not None and scales.grad.abs().max() > 1e-4
    torch.testing.assert_close(term.scales.grad, scales.grad, rtol=1e-4, atol=1e-6)
    assert linear_classifier(student).weight.grad is None


def test_only_norms_and_the_classifier_within_its_directions_change() -> None:
    student, before = network(), network()
    recipe = recipe_of(student, name="gold", threshold=0.0)
    train(recipe, 3)
    assert list(student.state_dict()) == list(before.state_dict())
    norms = {id(parameter) for parameter in norm_parameters(student)}
    old, changed = dict(before.named_parameters()), set[str]()
    for name, parameter in student.named_parameters():
        if not torch.equal(parameter, old[name]):
            changed.add(name)
            assert id(parameter) in norms or parameter is linear_classifier(student).weight
    assert len(changed) > 5
    term, rows = directions_of(recipe), linear_classifier(before).weight.detach().flatten(1)
    assert term.scales.shape == (CLASSES,) and term.scales.abs().min() > 0
    expected = rows @ (torch.eye(rows.shape[1]) + term.axes @ torch.diag(term.scales.detach()) @ term.axes.T)
    torch.testing.assert_close(linear_classifier(student).weight.detach().flatten(1), expected)
    logits = functional_call(network(), recipe.finished().state_dict(), (torch.randn(1, 3, 64, 64),))
    assert logits.shape == (1, CLASSES, 64, 64)


def test_new_directions_leave_the_network_as_it_is() -> None:
    student = network()
    recipe = recipe_of(student, name="gold", threshold=0.0, refresh_steps=2)
    term = directions_of(recipe)
    train(recipe, 2)
    weight, first = linear_classifier(student).weight.detach().clone(), term.axes.clone()
    recipe._prepare()
    assert torch.equal(term.scales, torch.zeros_like(term.scales)) and not torch.equal(term.axes, first)
    torch.testing.assert_close(term.scaled(), weight.flatten(1))
    torch.testing.assert_close(term.axes.T @ term.axes, torch.eye(CLASSES), atol=1e-5, rtol=0)
    assert (term.axes.T @ first).diagonal().min() > 0.9, "signs stay, so the optimizer's moments fit"
    assert (term.axes.gather(0, term.axes.abs().argmax(0, keepdim=True)) > 0).all(), "whatever sign eigh gives them"


def test_directions_follow_the_eigenvectors_without_a_solver(monkeypatch) -> None:
    """A GPU would be waited for by the solver at every turn."""
    term = directions_of(recipe_of(network(), name="gold"))
    with torch.no_grad():
        generator = torch.Generator().manual_seed(0)
        basis = torch.linalg.qr(torch.randn(len(term.gram), len(term.gram), generator=generator)).Q[
            :, : len(term.axes.T)
        ]
        term.axes.copy_(basis)
        near = torch.linalg.qr(basis + 0.05 * torch.randn(basis.shape, generator=generator)).Q
        strength = 0.7 ** torch.arange(basis.shape[1])
        term.gram.copy_(near * strength @ near.T)
    expected = torch.linalg.eigh(term.gram).eigenvectors.flip(1)[:, : basis.shape[1]]
    monkeypatch.setattr(torch.linalg, "eigh", None)
    term.turn()
    torch.testing.assert_close((term.axes.T @ expected).abs(), torch.eye(basis.shape[1]), atol=1e-3, rtol=0)
    assert (term.axes.gather(0, term.axes.abs().argmax(0, keepdim=True)) > 0).all()


def test_a_network_without_one_linear_classifier_is_refused() -> None:
    with pytest.raises(NetworkMismatch, match=r"recipe\.name: 'gold'.*has 0 of them.*tent or dacs"):
        recipe_of(network("deeplabv2"), name="gold")


def test_it_is_a_step_of_dacs_with_mfm() -> None:
    student = network()
    recipe = recipe_of(student, name="gold", mfm=True)
    assert isinstance(recipe, Gold)
    assert list(recipe.step(batch()).losses) == ["source", "mix", "mfm"]
    assert inputs_of(student, name="gold").recipe.advanced.directions == 64
