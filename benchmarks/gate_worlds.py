"""The drawn conditions of a long stream, and a state directory whose released model was trained on day.

The demo draws day and dusk; fog and night are made from them here. Labels of the stream exist for scoring only.
"""

import dataclasses
import shutil
from collections.abc import Sequence
from contextlib import closing
from importlib import resources
from pathlib import Path

import yaml

from adapters.rounds.source_training import pretrain
from configs.settings import Settings
from daemon.demo.conditions import DAY, DUSK, Condition
from daemon.demo.driving import DrivenDaemon, read_plain_settings
from daemon.demo.story import draw_all
from daemon.gate.moves import release
from storage.buffer.catalog import Catalog
from storage.buffer.observations import Observations
from storage.layout import StateLayout
from storage.registry.registry import CheckpointRegistry

FOG = dataclasses.replace(
    DAY, name="fog", code=3, sun=0.04, haze=(0.74, 0.76, 0.78), visibility=(15, 32), ambient=(0.86, 0.87, 0.90),
    zenith=(0.70, 0.73, 0.76), skyline=(0.74, 0.76, 0.78), clouds=(0.72, 0.74, 0.76), noise=(0.010, 0.020),
)  # fmt: skip
"""A day in dense fog."""
NIGHT = dataclasses.replace(
    DUSK, name="night", code=4, ambient=(0.16, 0.17, 0.26), zenith=(0.02, 0.03, 0.07), skyline=(0.07, 0.07, 0.12),
    clouds=(0.04, 0.05, 0.09), haze=(0.05, 0.06, 0.10), visibility=(120, 260), sun=0.0, noise=(0.030, 0.055),
)  # fmt: skip
"""A clear night under lamps."""
WORLDS: dict[str, Condition] = {world.name: world for world in (DAY, DUSK, FOG, NIGHT)}
STREAM = ("dusk", "fog", "night", "day")
"""One time round; the released model knows day only."""

SOURCE_SCENES = 220
TEST_SCENES = 40
TEST_FIRST, STREAM_FIRST = 50_000, 1_000_000
"""First seeds of the scenes that only the score sees, and of those of the stream."""


def drawn(folder: Path, world: str, first: int, count: int, *, labelled: bool) -> list[Path]:
    """Draw `count` scenes of `world` from seed `first` into `folder`/images (and /labels); return their pictures."""
    return draw_all([(folder, WORLDS[world], first + number, labelled) for number in range(count)])


def world_folder(root: Path, *, source: bool = True, **sections: dict[str, object]) -> Settings:
    """Make a folder with the demo's preset, hidden test scenes of every world and a released model trained on day.

    The released model is trained once and kept in `root`/released; `source`: leave the labelled source in the settings.
    `sections` are changes of the settings. Returns the settings of the new folder, `root`/run.
    """
    kept, run = root / "released", root / "run"
    if not (kept / "done").exists():
        _train(kept)
    if run.exists():
        shutil.rmtree(run)
    shutil.copytree(kept, run, symlinks=True)
    config = run / "mfmd.yaml"
    values = yaml.safe_load(config.read_text(encoding="utf-8"))
    for name, changes in sections.items():
        values[name] = {**values.get(name, {}), **changes}
    if not source:
        del values["source"]
    config.write_text(yaml.safe_dump(values), encoding="utf-8")
    return read_plain_settings(config)


def _train(folder: Path) -> None:
    preset = resources.files("configs") / "presets" / "demo.yaml"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "mfmd.yaml").write_text(preset.read_text(encoding="utf-8"), encoding="utf-8")
    drawn(folder / "source", "day", 0, SOURCE_SCENES, labelled=True)
    for world in WORLDS:
        drawn(folder / "test" / world, world, TEST_FIRST, TEST_SCENES, labelled=True)
    settings = read_plain_settings(folder / "mfmd.yaml")
    manifest = pretrain(settings, lambda _: None)
    registry = CheckpointRegistry(StateLayout(settings.state).checkpoints)
    release(registry, manifest.version, by="pretrain", reason="trained on labelled day scenes")
    (folder / "done").touch()


def stream(folder: Path, order: Sequence[str], frames: int, first: int = 0) -> list[tuple[str, list[Path]]]:
    """Draw a stream: for each segment of `order` its world and `frames` new pictures, never one twice.

    `first` shifts the seeds of the scenes, for another stream.
    """
    return [
        (world, drawn(folder / f"{place:02d}", world, STREAM_FIRST + first + place * frames, frames, labelled=False))
        for place, world in enumerate(order)
    ]


def wait_until_observed(driven: DrivenDaemon, seconds: float) -> None:
    """Wait until the observer has seen the newest committed frame; a round that starts earlier keeps it waiting."""

    def observed() -> bool | None:
        with closing(Catalog.open(driven.layout.catalog, writable=False)) as catalog:
            newest = catalog.newest_id()
        with Observations.open(driven.layout.observations, writable=False) as observations:
            return observations.newest() >= newest or None

    driven.wait_for(observed, "all frames observed", seconds)
