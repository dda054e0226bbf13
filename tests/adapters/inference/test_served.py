"""How a version computes while it serves: chunked copies, number formats, compilation."""

import copy
import gc
import sys
import tracemalloc
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from adapters.checkpoints.checkpoint import save_weights
from adapters.inference.copying import CHUNK_ELEMENTS, copy_weights, low_priority_stream
from adapters.inference.forward import Compiled, ServedForward
from adapters.networks.network import normalise
from configs.serving import ServingSettings
from storage.errors import CorruptCheckpoint
from tests.daemon.serving.serving_world import picture, tiny_network
from tests.sections import section

CPU = torch.device("cpu")
SIZE = (64, 96)


def served(seed: int = 1, **options: object) -> ServedForward:
    """A network of its own under these options."""
    return ServedForward(copy.deepcopy(tiny_network(seed)), section(ServingSettings, **options), CPU)


def images(count: int = 8) -> list[Tensor]:
    return [normalise(torch.from_numpy(picture(*SIZE, seed)[None].copy())) for seed in range(count)]


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_weights_are_copied_whole_whatever_the_memory_format(
    tmp_path: Path, memory_format: torch.memory_format
) -> None:
    save_weights(tiny_network(2), tmp_path / "w.safetensors")
    network = copy.deepcopy(tiny_network(1)).to(memory_format=memory_format)  # type: ignore[call-overload]
    before = {name: tensor.data_ptr() for name, tensor in network.state_dict().items()}
    copy_weights(network, tmp_path / "w.safetensors")
    after = network.state_dict()
    assert all(torch.equal(after[name], value) for name, value in tiny_network(2).state_dict().items())
    assert {name: tensor.data_ptr() for name, tensor in after.items()} == before, "copied into the same memory"


def test_a_large_tensor_goes_in_several_chunks_and_a_late_value_is_still_checked(tmp_path: Path) -> None:
    network = nn.Linear(64, 3 * CHUNK_ELEMENTS // 64)
    path = tmp_path / "w.safetensors"
    values = {name: torch.randn_like(tensor) for name, tensor in network.state_dict().items()}
    save_file(values, path)
    copy_weights(network, path)
    assert all(torch.equal(network.state_dict()[name], value) for name, value in values.items())
    values["weight"][-1, -1] = float("inf")
    save_file(values, tmp_path / "bad.safetensors")
    with pytest.raises(CorruptCheckpoint, match="non-finite values in weight"):
        copy_weights(network, tmp_path / "bad.safetensors")


def test_copying_again_and_again_leaves_nothing_behind(tmp_path: Path) -> None:
    path, network = tmp_path / "w.safetensors", copy.deepcopy(tiny_network(1))
    save_weights(tiny_network(2), path)
    copy_weights(network, path)
    tracemalloc.start()
    try:
        copy_weights(network, path)
        gc.collect()
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(10):
            copy_weights(network, path)
        gc.collect()
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    integers = grown / sys.getsizeof(1 << 20) / 10 / len(network.state_dict())
    assert integers < 1, f"{grown} bytes stay: {integers:.1f} integers a tensor, each time"


def test_weights_of_a_type_that_no_network_has_do_not_fit(tmp_path: Path) -> None:
    network = nn.Linear(2, 2)
    wrong = {name: tensor.to(torch.float8_e4m3fn) for name, tensor in network.state_dict().items()}
    save_file(wrong, tmp_path / "w.safetensors")
    with pytest.raises(CorruptCheckpoint, match="has a wrong type for"):
        copy_weights(network, tmp_path / "w.safetensors")


def test_weights_that_do_not_fit_are_refused_before_anything_is_copied(tmp_path: Path) -> None:
    save_weights(tiny_network(2), tmp_path / "w.safetensors")
    tensors = load_file(tmp_path / "w.safetensors")
    del tensors[next(reversed(tensors))]
    save_file(tensors, tmp_path / "short.safetensors")
    network = copy.deepcopy(tiny_network(1))
    with pytest.raises(CorruptCheckpoint, match="lacks"):
        copy_weights(network, tmp_path / "short.safetensors")
    (tmp_path / "text.safetensors").write_text("no tensors")
    with pytest.raises(CorruptCheckpoint, match="not a readable"):
        copy_weights(network, tmp_path / "text.safetensors")
    unchanged = tiny_network(1).state_dict()
    assert all(torch.equal(unchanged[name], value) for name, value in network.state_dict().items())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_the_copy_goes_through_a_stream_of_its_own(tmp_path: Path) -> None:
    device = torch.device("cuda")
    save_weights(tiny_network(2), tmp_path / "w.safetensors")
    network = copy.deepcopy(tiny_network(1)).to(device)
    main = torch.cuda.current_stream(device)
    with low_priority_stream(device):
        assert torch.cuda.current_stream(device) != main
        copy_weights(network, tmp_path / "w.safetensors")
    after = network.state_dict()
    assert all(torch.equal(after[name].cpu(), value) for name, value in tiny_network(2).state_dict().items())


def test_float32_is_the_network_itself() -> None:
    forward, image = served(fold_batch_norm=False), images(1)[0]
    with torch.inference_mode():
        assert torch.equal(forward(image), tiny_network(1)(image))
    assert forward.computes == "float32"


def test_bf16_gives_float32_logits_close_to_the_exact_ones_and_leaves_the_weights() -> None:
    forward, image = served(precision="bf16"), images(1)[0]
    with torch.inference_mode():
        exact, logits = tiny_network(1)(image), forward(image)
    assert logits.dtype == torch.float32 and forward.computes == "bf16"
    assert not torch.equal(logits, exact), "it computed in float32"
    torch.testing.assert_close(logits, exact, atol=0.05, rtol=0.05)
    assert all(parameter.dtype == torch.float32 for parameter in forward.network.parameters())


def test_channels_last_changes_memory_not_answers() -> None:
    forward, image = served(channels_last=True), images(1)[0]
    weights = [parameter for parameter in forward.network.parameters() if parameter.dim() == 4 and len(parameter) > 1]
    assert all(weight.is_contiguous(memory_format=torch.channels_last) for weight in weights)
    with torch.inference_mode():
        torch.testing.assert_close(forward(image), tiny_network(1)(image), atol=1e-5, rtol=1e-4)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method.*:DeprecationWarning")
def test_compiled_code_runs_for_prepared_shapes_only_and_follows_new_weights() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU()).eval()
    calls: list[bool] = []
    network[0].register_forward_pre_hook(lambda *_: calls.append(torch.compiler.is_compiling()))
    compiled, image, other = Compiled(network), torch.randn(1, 3, 8, 8), torch.randn(1, 3, 8, 16)
    with torch.inference_mode():
        torch.testing.assert_close(compiled(image), network(image))
        assert len(calls) == 2, "not prepared: it runs as it is"
        torch.testing.assert_close(compiled.prepare(image), network(image), atol=1e-5, rtol=1e-5)
        network[0].weight.data.mul_(2.0)
        torch.testing.assert_close(compiled(image), network(image), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(compiled(other), network(other))
