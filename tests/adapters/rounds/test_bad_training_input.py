"""Training on data that nobody would choose: finite losses and a finite candidate in every recipe, with MFM.

Each recipe trains on each kind of data; the richest one goes through the whole round, with its scores.
"""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image

from adapters.rounds.inputs import load_inputs
from adapters.rounds.run import train_and_score
from adapters.rounds.stop import StopRequest
from adapters.rounds.training import Training
from configs.settings import Settings
from storage.buffer.catalog_records import FileFact
from storage.buffer.frames import FrameBuffer, NewFrame
from storage.durable.digest import digest_of
from storage.media.images import fit_frame
from storage.rounds.folder import RoundFolder
from storage.source.labelled_import import held_out
from tests.adapters.conftest import TrainingState, draw

pytestmark = pytest.mark.usefixtures("few_statistics")

Losses = dict[str, float]
STEPS = 2
NETWORKS = {
    "dacs": {},
    "daformer": {"name": "daformer", "encoder": "mit_tiny", "channels": 16},
    "mic": {"name": "deeplabv3plus", "encoder": "resnet_tiny", "channels": 16, "advanced": {"output_stride": 16}},
}
"""Every recipe on another kind of network."""


def relabelled(state: TrainingState, settings: Settings, label: np.ndarray) -> RoundFolder:
    """Every source image carries `label`."""
    state.draw_source()
    for path in (state.folder / "source/labels").iterdir():
        Image.fromarray(label).save(path)
    state.fill_buffer(settings)
    return registered(state, settings)


def registered(state: TrainingState, settings: Settings, *, train: int = 4) -> RoundFolder:
    state.register_network(settings)
    return state.spec(settings, train=train)


def add_frames(state: TrainingState, settings: Settings, sizes: list[tuple[int, int]]) -> None:
    """Commit drawn frames of these sizes, scaled to fit."""
    state.layout.create()
    with FrameBuffer.open(state.layout, settings.buffer, writable=True) as frames:
        new = []
        for seed, (height, width) in enumerate(sizes):
            image = draw(seed, dusk=True, height=height, width=width)[0]
            fact, fitted = FileFact(f"{seed}.png", image.nbytes, seed), fit_frame(image, 48, 64)
            new.append(NewFrame(fact, digest_of(image.tobytes()), float(seed), height, width, fitted))
        frames.append(new)


def one_class_only(state: TrainingState, settings: Settings) -> RoundFolder:
    return relabelled(state, settings, np.ones((48, 64), np.uint8))


def all_labels_ignored(state: TrainingState, settings: Settings) -> RoundFolder:
    """All that are trained on: a set without any labelled pixel is not imported."""
    state.draw_source()
    paths = sorted((state.folder / "source/labels").iterdir())
    kept = held_out([path.name for path in paths])
    for number, path in enumerate(paths):
        if number not in kept:
            Image.fromarray(np.full((48, 64), 255, np.uint8)).save(path)
    state.fill_buffer(settings)
    return registered(state, settings)


def a_single_frame_and_a_single_source_image(state: TrainingState, settings: Settings) -> RoundFolder:
    state.draw_source(1)
    state.fill_buffer(settings, count=1)
    return registered(state, settings, train=1)


def images_smaller_than_the_crop(state: TrainingState, settings: Settings) -> RoundFolder:
    """Strips and columns: scaled to fit, they leave a valid region of a few pixels on one side."""
    sizes = [(6, 200), (200, 6), (5, 7), (20, 90)]
    state.draw_source()
    for number, path in enumerate(sorted((state.folder / "source/images").iterdir())):
        height, width = sizes[number % 4]
        image, label = draw(number, height=height, width=width)
        Image.fromarray(image).save(path)
        Image.fromarray(label).save(state.folder / "source/labels" / path.name)
    add_frames(state, settings, [*sizes, (2, 2), (90, 20)])
    return registered(state, settings)


def a_class_too_rare_for_any_share(state: TrainingState, settings: Settings) -> RoundFolder:
    """Four pixels of a car in each image."""
    label = np.zeros((48, 64), np.uint8)
    label[24:] = 1
    label[30:32, 30:32] = 2
    return relabelled(state, settings, label)


def ordinary(state: TrainingState, settings: Settings) -> RoundFolder:
    if settings.source is not None:
        state.draw_source()
    state.fill_buffer(settings)
    return registered(state, settings)


Data = Callable[[TrainingState, Settings], RoundFolder]
WHOLE = {"crop_height": 48, "crop_width": 64}
CASES: dict[str, tuple[Data, dict]] = {
    "one class only": (one_class_only, {}),
    "all labels ignored": (all_labels_ignored, {}),
    "a single frame": (a_single_frame_and_a_single_source_image, {}),
    "images smaller than the crop": (images_smaller_than_the_crop, {"round": WHOLE}),
    "source-free and smaller than the crop": (images_smaller_than_the_crop, {"round": WHOLE, "source": None}),
    "sizes the stride does not divide": (ordinary, {"round": {"crop_height": 45, "crop_width": 61}}),
    "a crop larger than the frames": (ordinary, {"round": {"crop_height": 512, "crop_width": 512}}),
    "a class too rare": (a_class_too_rare_for_any_share, {}),
    "margins of all rows but one": (ordinary, {"recipe": {"margin_top": 0.5, "margin_bottom": 0.48}}),
}


def prepared(state: TrainingState, recipe: str, case: str) -> tuple[RoundFolder, Settings]:
    make, changes = CASES[case]
    things = {} if recipe == "dacs" else {"thing_classes": ["car"]}
    settings = state.settings(
        recipe={"name": recipe, **things, "threshold": 0.3, **changes.get("recipe", {})},
        network=NETWORKS[recipe],
        round={"steps": STEPS, **changes.get("round", {})},
        **({"source": None} if "source" in changes else {}),
    )
    return make(state, settings), settings


def check(case: str, losses: Losses) -> None:
    """What the losses of a case must be like."""
    source_free = case.startswith("source-free")
    assert {"mix", "mfm"} <= losses.keys() and ("source" in losses) != source_free
    assert all(math.isfinite(loss) for loss in losses.values())
    assert losses["mfm"] > 0
    if case == "all labels ignored":
        assert losses["source"] == 0.0
    elif not source_free:
        assert losses["source"] > 0
    if case in ("one class only", "all labels ignored", "a class too rare"):
        assert losses.get("feature_distance", 0.0) == 0.0  # no cell holds a thing


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("recipe", ["dacs", pytest.param("daformer", marks=pytest.mark.nightly)])
def test_training_goes_on_and_leaves_a_sound_candidate(training_state, recipe, case) -> None:
    folder, settings = prepared(training_state, recipe, case)
    inputs = load_inputs(folder.spec(), settings)
    with inputs.buffer:
        training = Training(inputs)
        for _ in range(STEPS):
            losses = training.step(1.0).losses
        candidate = training.candidate()
    check(case, {name: float(loss) for name, loss in losses.items()})
    assert all(torch.isfinite(tensor).all() for tensor in candidate.state_dict().values())


WORST = ("all labels ignored", "source-free and smaller than the crop")
"""What scores could trip over: no class at all, no source."""


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=() if case in WORST else pytest.mark.nightly) for case in CASES]
)
def test_whole_round_ends_with_scores(training_state, case) -> None:
    folder, _ = prepared(training_state, "mic", case)
    with StopRequest() as stop:
        assert train_and_score(folder.spec_path, stop) == 0
    scores = folder.scores()
    assert (scores.status, scores.steps) == ("completed", STEPS), scores.reason
    assert scores.candidate.finite and not scores.candidate.missing
    check(case, folder.progress()[2].losses)
