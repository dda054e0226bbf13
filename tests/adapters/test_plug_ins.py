"""Plug-ins by entry point: the package of docs/how-to/plug-ins.md works; broken and clashing ones are named."""

import re
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch.nn import functional as F

from adapters.augmentation.augment import normalise_unit, to_unit
from adapters.rounds.run import train_and_score
from adapters.rounds.stop import StopRequest
from configs.buffer import BufferSettings
from configs.errors import ConfigError
from configs.plugins import EVICTION, load_plugin, refused
from configs.settings import Settings
from configs.watch import AdmissionSettings
from daemon.doctor.plugins import examine_plugins
from daemon.gate.promotion import _headline_scores
from daemon.ingest.admission import Admission
from storage.buffer.catalog_records import FileFact
from storage.buffer.frames import FrameBuffer, NewFrame
from storage.errors import CorruptBuffer
from storage.eviction.foreign import Foreign
from storage.eviction.policy import Held
from storage.media.images import FittedFrame
from tests.adapters.conftest import TrainingState
from tests.adapters.recipes.recipe_steps import batch, network, recipe_of
from tests.sections import recipe_settings, section

pytestmark = pytest.mark.usefixtures("few_statistics")

PAGE = Path(__file__).parents[2] / "docs/how-to/plug-ins.md"
Install = Callable[..., None]
NAMED = {
    "recipe": {"name": "plugin", "advanced": {"plugin": "source_only", "options": {"weight": 2.0}}},
    "round": {"advanced": {"scores": ["confidence"]}},
    "admission": {"advanced": {"policies": ["not_black"]}},
    "buffer": {"eviction": "newest_first"},
}


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Installs a package with one module and its entry points, {group: {name: value}}."""
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(site)

    def into_site(package: str, module: str, code: str, groups: dict[str, dict[str, str]]) -> None:
        (site / f"{module}.py").write_text(code, encoding="utf-8")
        monkeypatch.delitem(sys.modules, module, raising=False)
        record = site / f"{package.replace('-', '_')}-1.dist-info"
        record.mkdir()
        (record / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1\n", encoding="utf-8")
        lines = [f"[{group}]\n" + "".join(f"{n} = {v}\n" for n, v in found.items()) for group, found in groups.items()]
        (record / "entry_points.txt").write_text("\n".join(lines), encoding="utf-8")

    return into_site


@pytest.fixture
def package(install: Install) -> None:
    """The package of the page."""
    blocks = dict(re.findall(r"```(toml|python)\n(.*?)```", PAGE.read_text("utf-8"), flags=re.DOTALL))
    project = tomllib.loads(blocks["toml"])["project"]
    install(project["name"], "my_plugins", blocks["python"], project["entry-points"])


def new_frame(brightness: int, name: str = "new.png") -> NewFrame:
    pixels = FittedFrame(np.full((48, 64, 3), brightness, np.uint8), 48, 64)
    return NewFrame(FileFact(name, 1, 1), f"{hash(name) & 2**64 - 1:064x}", 0.0, 48, 64, pixels, "", "")


def test_a_round_trains_with_the_recipe_and_scores_with_the_score(package: None, training_state: TrainingState) -> None:
    folder = training_state.round(**NAMED)
    with StopRequest() as stop:
        assert train_and_score(folder.spec_path, stop) == 0
    scores = folder.scores()
    assert scores is not None and set(folder.progress()[2].losses) == {"source"}
    assert len(scores.candidate.plugins["confidence"]) == len(scores.candidate.area)
    assert 1 / 3 < _headline_scores(scores.candidate)["plugin_confidence"] <= 1


def test_source_images_are_translated_by_the_translation(package: None) -> None:
    student, step = network(), batch()
    recipe = recipe_of(student, translation={"enabled": True, "translate": "tinted"})
    losses = recipe.step(step).losses
    source, target = (to_unit(part.images) for part in (step.source, step.target))
    tinted = (source - source.mean((2, 3), True) + target.mean((2, 3), True)).clamp(0, 1)
    expected = F.cross_entropy(network()(normalise_unit(tinted)), step.source.labels.long())
    torch.testing.assert_close(losses["translated"], expected)
    with pytest.raises(ValidationError, match=r"no 'tints' is built in.*mfmd\.translations.*tinted"):
        recipe_settings(translation={"translate": "tints"})


def test_the_policies_decide_what_enters_and_what_leaves(package: None, training_state: TrainingState) -> None:
    settings = training_state.settings(**NAMED | {"buffer": {"eviction": "newest_first", "capacity_frames": 4}})
    training_state.layout.create()
    with FrameBuffer.open(training_state.layout, settings.buffer, writable=True) as buffer:
        admission = Admission(settings.admission, buffer.catalog)
        assert admission.judge(new_frame(90), []) is None
        dark = admission.judge(new_frame(1), [])
        assert dark is not None and (dark.reason, dark.detail) == ("policy", "not_black: mean brightness 1.0 of 255")
        buffer.append([new_frame(40 * number, f"{number}.png") for number in range(6)])
        assert [record.name for record in buffer.records()] == ["0.png", "1.png", "2.png", "3.png"]


def test_a_policy_that_fails_loses_no_image(install: Install, training_state: TrainingState) -> None:
    install(
        "theirs",
        "their_policy",
        "def policy(new):\n    return 1 / 0\n",
        {"mfmd.admission": {"odd": "their_policy:policy"}},
    )
    training_state.layout.create()
    with FrameBuffer.open(training_state.layout, training_state.settings().buffer, writable=True) as buffer:
        admission = Admission(section(AdmissionSettings, policies=["odd"]), buffer.catalog)
        assert admission.judge(new_frame(9), []) is None


def test_an_eviction_policy_cannot_take_what_may_not_leave() -> None:
    class Odd:
        def order(self, frames: list[Held], may_leave: list[int]) -> object:
            yield from (1, 4, 4, 99)
            raise CorruptBuffer("lost")

    frames = [Held(number, "", "") for number in range(1, 6)]
    assert list(Foreign("odd", Odd()).order(frames, {2, 3, 4})) == [4, 2, 3]
    with pytest.raises(ConfigError, match=r"'odd' gave a int without `order`"):
        Foreign("odd", 3)


def test_only_the_broken_plug_in_that_is_named_matters(install: Install, training_state: TrainingState) -> None:
    install(
        "broken-one", "a_broken_plugin", "1 / 0", {"mfmd.eviction": {"odd": "a_broken_plugin:x"}, "mfmd.scores": {}}
    )
    training_state.layout.create()
    with FrameBuffer.open(training_state.layout, training_state.settings().buffer, writable=True):
        pass  # nobody imports it
    named = training_state.settings(buffer={"eviction": "odd"}).buffer
    message = r"buffer.eviction: plug-in 'odd' \(a_broken_plugin:x, package broken-one\).*ZeroDivisionError"
    with pytest.raises(ConfigError, match=message):
        FrameBuffer.open(training_state.layout, named, writable=True)
    with FrameBuffer.open(training_state.layout, named, writable=False) as readers_do_not_need_it:
        assert readers_do_not_need_it.records() == []


def test_a_name_that_nobody_brings_is_refused_by_the_configuration(package: None) -> None:
    with pytest.raises(ValidationError, match=r"no 'newest_frist' is built in.*did you mean 'newest_first'"):
        BufferSettings(eviction="newest_frist")
    with pytest.raises(ValidationError, match=r"no 'absent' is built in.*mfmd\.admission"):
        section(AdmissionSettings, policies=["absent"])


def test_names_that_are_taken_are_refused_by_name(install: Install) -> None:
    taken = {"mfmd.eviction": {"fifo": "one:x", "theirs": "one:x"}, "mfmd.recipes": {"dacs": "one:x"}}
    install("one", "one", "", taken)
    install("two", "two", "", {"mfmd.eviction": {"theirs": "two:x"}})
    assert refused({EVICTION: ("fifo",)}) == [
        "one brings 'fifo' in mfmd.eviction, which is built in; the built-in one is used",
        "one and two bring 'theirs' in mfmd.eviction; none is used",
    ]
    with pytest.raises(ValidationError, match="'dacs' is a recipe of mfmd"):
        recipe_settings("plugin", plugin="dacs")
    assert BufferSettings(eviction="fifo").eviction == "fifo"
    with pytest.raises(ConfigError, match="one and two bring it"):
        load_plugin("theirs", EVICTION, "buffer.eviction")


def test_doctor_imports_what_the_configuration_names(package: None, training_state: TrainingState) -> None:
    assert examine_plugins(training_state.settings()) == []
    settings: Settings = training_state.settings(buffer={"eviction": "newest_first"})
    [finding] = examine_plugins(settings)  # the child does not find the package
    assert finding.level == "fail" and "buffer.eviction: no 'newest_first' is built in" in finding.detail
