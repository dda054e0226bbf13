"""Options of a round that change how it computes, not what: each works, and gives what the plain round gives."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from accelerate.optimizer import AcceleratedOptimizer
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from adapters.rounds.inputs import load_inputs
from adapters.rounds.run import train_and_score
from adapters.rounds.stop import StopRequest
from adapters.rounds.training import Training
from storage.registry.registry import CheckpointRegistry
from storage.rounds.folder import RoundFolder
from tests.adapters.rounds.forked_rounds import fork, wait

SETTLED = {
    "jitter": 0.0,
    "threshold": 0.0,
    "advanced": {"blur_probability": 0.0, "classmix": False, "source_jitter": 0.0},
}
"""A recipe in which nothing is drawn for a batch as a whole, and q is 1: then batches can be split."""


@contextmanager
def training_of(training_state, **sections) -> Iterator[Training]:
    """What a round of these settings trains with."""
    settings = training_state.settings(**sections)
    folder = training_state.spec(settings)
    spec = folder.spec().model_copy(update={"round": 1})  # one seed for all
    inputs = load_inputs(spec, settings)
    with inputs.buffer:
        yield Training(inputs)


@pytest.fixture
def prepared(training_state):
    """A state directory in which rounds can start."""
    training_state.round()
    return training_state


def gradients(training: Training, steps: int = 1) -> dict[str, Tensor]:
    for _ in range(steps):
        training.step(1.0)
    return {name: parameter.grad.clone() for name, parameter in training.student.named_parameters()}


def assert_close(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, other[name], rtol=1e-4, atol=1e-6, msg=lambda text, name=name: name + text)


@pytest.mark.parametrize("source", [{}, None])
def test_accumulated_batches_are_one_large_batch(prepared, source) -> None:
    """BatchNorm sees single batches: here it normalises with its running statistics."""
    found = []
    for round_settings in ({"batch_size": 4}, {"batch_size": 2, "advanced": {"gradient_accumulation": 2}}):
        sections = {"recipe": SETTLED, "mfm": {"enabled": False}, "network": {"dropout": 0.0}, "round": round_settings}
        if source is None:
            sections["source"] = None
        with training_of(prepared, **sections) as training:
            for module in training.recipe.modules().values():
                for layer in module.modules():
                    if isinstance(layer, _BatchNorm | torch.nn.Dropout | torch.nn.Dropout2d):
                        layer.eval()
            found.append(gradients(training))
            assert training.images_per_step == (8 if source is not None else 4)
    assert_close(*found)


def test_gradient_checkpointing_changes_no_number(prepared) -> None:
    """Dropout draws the same in both passes, and BatchNorm records one of them."""
    found = []
    for checkpointing in (False, True):
        sections = {"network": {"dropout": 0.3}, "round": {"advanced": {"gradient_checkpointing": checkpointing}}}
        with training_of(prepared, **sections) as training:
            passes = []
            inside = training.student.encoder.model.encoder.stages[0].layers[0].layer[0]
            inside.register_forward_hook(lambda *_, passes=passes: passes.append(1))
            grads = gradients(training)
            found.append({**grads, **dict(training.student.named_buffers())})
            assert len(passes) == (6 if checkpointing else 3), "source, mix and target, again in the backward pass"
            teachers = training.recipe.modules()["teacher"].encoder
            assert teachers is not training.student.encoder
    assert_close(*found)
    assert found[0]["encoder.model.embedder.embedder.normalization.num_batches_tracked"] == 3


def test_the_scaler_of_fp16_takes_steps_in_which_mfm_pauses(prepared) -> None:
    """It refuses an optimizer step before which it saw no gradient."""
    recipe, scaler = {"advanced": {"separate_steps": True}}, torch.amp.GradScaler("cpu")
    scaler.scale(torch.ones(()))  # it begins with its first loss
    with training_of(prepared, recipe=recipe, mfm={"ablation": {"interval": 2}}) as training:
        training.optimizer = AcceleratedOptimizer(training.optimizer.optimizer, scaler=scaler)
        steps = [training.step(1.0) for _ in range(6)]
        assert [step.losses["mfm"].item() > 0.0 for step in steps if "mfm" in step.losses] == [True, False]


@pytest.mark.parametrize("last", [True, False])
def test_channels_last_is_the_layout_of_weights_and_images(prepared, last) -> None:
    layout, seen = torch.channels_last if last else torch.contiguous_format, []
    with training_of(prepared, round={"advanced": {"channels_last": last}}) as training:
        network = training.student
        network.encoder.register_forward_hook(lambda _, inputs, maps: seen.extend(maps))
        training.step(1.0)
        weights = [name for name, weight in network.named_parameters() if weight.ndim == 4]
        assert [name for name in weights if not network.get_parameter(name).is_contiguous(memory_format=layout)] == []
        assert len(seen) == 3 and all(maps.is_contiguous(memory_format=layout) for maps in seen)


def run(folder: RoundFolder) -> int:
    with StopRequest() as stop:
        return train_and_score(folder.spec_path, stop)


def test_a_loss_above_the_limit_ends_the_round(training_state) -> None:
    folder = training_state.round(round={"advanced": {"loss_limit": 0.01, "save_steps": 1}})
    assert run(folder) == 0
    scores = folder.scores()
    assert scores.status == "failed"
    assert scores.reason.startswith("loss above round.advanced.loss_limit (0.01) at step 1: {'source': ")
    assert not folder.candidate.exists() and folder.states.steps() == [], "what went wrong is not saved"


def test_an_option_that_changes_a_round_leaves_a_plain_candidate(training_state) -> None:
    advanced = {"gradient_accumulation": 2, "gradient_checkpointing": True, "channels_last": True}
    options = {"steps": 2, "advanced": advanced}
    folder = training_state.round(round=options)
    assert run(folder) == 0
    assert folder.scores().status == "completed", folder.scores().reason
    before = load_file(CheckpointRegistry(training_state.layout.checkpoints).weights_path(1))
    after = load_file(folder.candidate)
    assert {name: tensor.shape for name, tensor in before.items()} == {name: t.shape for name, t in after.items()}


def test_a_round_in_bf16_ends_finite(training_state) -> None:
    """In a process of its own: Accelerate keeps the first precision that a process asked for."""
    folder = training_state.round(round={"mixed_precision": "bf16"})
    assert wait(fork(folder, ACCELERATE_MIXED_PRECISION="bf16")) == 0, folder.log.read_text()
    scores = folder.scores()
    assert scores.status == "completed", scores.reason
    assert scores.candidate.finite
    assert {tensor.dtype for tensor in load_file(folder.candidate).values()} == {torch.float32, torch.int64}


@pytest.mark.nightly
@pytest.mark.timeout(600)
@pytest.mark.filterwarnings("ignore")  # of torch's own compiler; other rounds show ours
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on the CPU")
def test_a_compiled_round_completes_with_a_plain_candidate(training_state) -> None:
    plain = training_state.round(round={"steps": 2}, network={"dropout": 0.0})
    compiled = training_state.spec(
        training_state.settings(round={"steps": 2, "advanced": {"compile": True}}, network={"dropout": 0})
    )
    spec = compiled.spec().model_copy(update={"round": 1})
    compiled.spec_path.write_text(spec.model_dump_json())
    torch._dynamo.utils.counters.clear()
    assert run(plain) == run(compiled) == 0
    assert compiled.scores().status == "completed", compiled.scores().reason
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 2, "encoder and decoder were compiled"
    one, other = load_file(plain.candidate), load_file(compiled.candidate)
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=1e-3, atol=1e-3)
