"""Two processes, started one by one or by `accelerate launch`, do what one process does with the batch of both."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file
from torch import nn

from adapters.networks.decoders import daformer
from adapters.recipes.build import RECIPES
from adapters.rounds.run import train_and_score
from adapters.rounds.stop import StopRequest
from configs.settings import Settings
from daemon.rounds.environment import round_environment
from daemon.rounds.launch import launch_command
from storage.registry.registry import CheckpointRegistry
from storage.rounds.folder import RoundFolder
from tests.adapters.recipes.added_terms import TERMS, TOGETHER, named, with_encoder
from tests.adapters.rounds.forked_rounds import run_pair
from tests.sections import recipe_settings

ROOT = Path(__file__).parents[3]
TOLERANCE = 1e-5
"""Of a weight, relative where it is large: AdamW makes steps of full size of tiny gradients, so what sums over batches
round differently shows in a few weights."""
ONE_PIXEL = 0.05
"""Of a count in a histogram: a confidence at the edge of two bins may round to either."""
MOVED = 1e-4
"""Training moves the student's weights by more than this."""


def launch(folder: RoundFolder, _before: Callable[[], None]) -> None:
    """As the daemon does; no HRDA."""
    settings = Settings.model_validate(folder.spec().settings).round
    with folder.log.open("wb") as log:
        status = subprocess.run(
            launch_command(settings, folder.spec_path),
            env=round_environment(settings),
            cwd=ROOT,
            stdout=log,
            stderr=log,
            timeout=200,
            check=False,
        ).returncode
    assert status == 0, folder.log.read_text()


RECIPES = [
    pytest.param(
        name,
        mfm,
        {},
        run_pair,
        id=f"{name}{'+mfm' if mfm else ''}",
        marks=pytest.mark.nightly,
    )
    for name in RECIPES
    for mfm in (False, True)
    if name != "bn_statistics"  # of both together: test_parallel.py
    if mfm is not recipe_settings(name=name).test_time or name == "dacs"
]
"""Each recipe with MFM if it can have it, and the barest one."""
RECIPES.append(pytest.param("dacs", True, TOGETHER, run_pair, id="dacs+mfm+terms"))
"""With all terms that can be added: the one of every `make test`."""
RECIPES += [
    pytest.param("dacs", True, terms, run_pair, id=name, marks=pytest.mark.nightly) for name, terms in TERMS.items()
]
RECIPES.append(pytest.param("dacs", True, {}, launch, id="launched", marks=pytest.mark.nightly))
"""What the launcher adds is the same for every recipe, and takes longer than the round."""


def folder_of(training_state, name: str, batch_size: int, settings: Settings) -> RoundFolder:
    """A folder of round 1 with another batch size."""
    folder = RoundFolder(training_state.layout.rounds / name)
    spec = RoundFolder(training_state.layout.rounds / "000001").spec()
    processes = 4 // batch_size
    own = settings.round.model_copy(update={"batch_size": batch_size, "processes": processes})
    changed = settings.model_copy(update={"round": own}).model_dump(mode="json")
    folder.path.mkdir()
    folder.spec_path.write_text(spec.model_copy(update={"settings": changed}).model_dump_json())
    return folder


def conv_group_norm_relu(inputs: int, outputs: int, kernel: int = 1) -> nn.Sequential:
    """Like `conv_norm_relu`, with a norm that sees one image at a time."""
    convolution = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
    return nn.Sequential(convolution, nn.GroupNorm(4, outputs), nn.ReLU(inplace=True))


def undilated(inputs: int, outputs: int, dilation: int) -> nn.Sequential:
    """In place of `separable_conv`."""
    return conv_group_norm_relu(inputs, outputs, 3)


def use_group_norm() -> None:
    """Build DAFormer's decoder and HRDA's attention, the parts of these networks with BatchNorm, without it."""
    daformer.conv_norm_relu, daformer.separable_conv = conv_group_norm_relu, undilated


def distances(one: Path, other: Path) -> dict[str, float]:
    """Largest difference of each tensor of two files; relative where its values are large."""
    mine, theirs = load_file(one), load_file(other)
    assert mine.keys() == theirs.keys()
    return {name: float((mine[name] - theirs[name]).abs().div(1.0 + mine[name].abs()).max()) for name in mine}


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("name", "mfm", "terms", "how"), RECIPES)
def test_two_processes_match_one_with_the_whole_batch(
    training_state,
    tmp_path: Path,
    monkeypatch,
    name: str,
    mfm: bool,
    terms: dict,
    how: Callable[[RoundFolder, Callable[[], None]], None],
) -> None:
    """ClassMix and q are over both. Dropout is off: each draws its own; no BatchNorm, which CPUs do not synchronise."""
    monkeypatch.setattr(daformer, "conv_norm_relu", conv_group_norm_relu)
    terms = with_encoder(terms, tmp_path)
    monkeypatch.setattr(daformer, "separable_conv", undilated)
    optim = {"learning_rate": 4e-5, "head_multiplier": 5.0, "advanced": {"warmup_steps": 0, "clip_norm": 1.0}}
    sections = {
        "recipe": {**named(name), "threshold": 0.4, **({"advanced": terms} if terms else {})},
        "mfm": {"enabled": mfm, "learning_rate": 2e-4},
        "network": {
            **({"name": "daformer"} if name == "gold" else {}),  # it needs one linear classifier
            **{"encoder": "dinov2_tiny", "multi_resolution": name == "hrda", "dropout": 0.0},
        },
        "round": {"steps": 6, "crop_height": 32, "crop_width": 32, "optim": optim},
    }
    training_state.round(**sections)
    settings = training_state.settings(**sections)
    one = folder_of(training_state, "000002", 4, settings)
    two = folder_of(training_state, "000003", 2, settings)
    with StopRequest() as stop:
        assert train_and_score(one.spec_path, stop) == 0
    how(two, use_group_norm)
    assert two.scores().status == "completed", two.scores().reason
    before = CheckpointRegistry(training_state.layout.checkpoints).weights_path(1)
    assert max(distances(one.states.latest() / "student.safetensors", before).values()) > MOVED
    assert not any("running" in key for key in load_file(one.candidate))
    states = [path for path in one.states.latest().glob("*.safetensors") if path.name != "state.safetensors"]
    for path in [one.candidate, *states]:
        apart = distances(path, two.path / path.relative_to(one.path))
        worst = max(apart, key=lambda name: apart[name])
        allowed = ONE_PIXEL if worst == "histogram" else TOLERANCE
        assert apart[worst] < allowed, f"{path.name}: {worst} {apart[worst]}"
