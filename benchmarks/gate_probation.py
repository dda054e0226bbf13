"""Probation on forced promotions: truly worse and truly better models of the bank, through the real daemon.

The gate is bypassed: a model of the bank (`gate_bank.py`, drawn worlds) is promoted in its name, fresh frames of the
world arrive, and probation decides. Truth is the mIoU on hidden scenes. The baseline of the same run rolls back every
second promotion, whatever the frames say. With `--canary 10` ten other scenes of the world are labelled.

    python benchmarks/gate_probation.py --root out/probation --bank out/bank --worlds dusk night
"""

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from gate_worlds import drawn, world_folder

from daemon.demo.driving import DrivenDaemon
from storage.buffer.observations import Observations
from storage.canary.adding import add_canary
from storage.canary.images import import_canary
from storage.durable.record import read_record
from storage.gate.probation import Probation
from storage.layout import StateLayout

POINT = 1.0
"""A model is worse or better when its true mIoU differs by more (points)."""
FIRST, CANARY_FIRST = 4_000_000, 5_000_000
"""First seeds of the fresh scenes, and of the labelled ones."""
BURST = 8
"""Fresh scenes that are dropped at once."""
STREAM = 64
"""Scenes of the world before the first promotion."""
MOST = 160
"""Most fresh scenes for one model."""
WAIT_SECONDS = 180.0
IDLE_SECONDS = 4.0
"""The observer and the rules look once a second."""
KINDS = ("incumbent", "the incumbent again")


class Forced(NamedTuple):
    """A model to promote."""

    name: str
    gain: float
    """Truth (points)."""
    weights: Path


def chosen(folder: Path, origin: str, count: int) -> list[Forced]:
    """Return `count` worse and `count` better models that come from `origin`, evenly spread over their true gain."""
    lines = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob(f"{origin}~*.json"))]
    before = json.loads((folder / f"{origin}.json").read_text(encoding="utf-8"))["miou"]
    models = sorted(
        (Forced(line["name"], 100.0 * (line["miou"] - before), folder / f"{line['name']}.safetensors"))
        for line in lines
        if line["kind"] not in KINDS and line["scores"]["finite"]
    )
    found: list[Forced] = []
    for sign in (-1.0, 1.0):
        side = sorted((model for model in models if sign * model.gain > POINT), key=lambda model: model.gain)
        step = max(1.0, len(side) / count)
        found += [side[int(place * step)] for place in range(min(count, len(side)))]
    return found


def run(
    root: Path, folder: Path, world: str, origin: str, count: int, *, source: bool, canary: int = 0
) -> Iterator[tuple[Forced, Probation]]:
    """Promote each chosen model over `origin`; yield it and how its probation ended. `canary`: labelled scenes."""
    sections: dict[str, dict[str, object]] = {
        "recall": {"advanced": {"enabled": False}},
        "schedule": {"enabled": False},
        "drift": {"advanced": {"starts_round": False}},
        "probation": {"advanced": {"cooldown_seconds": 0.0}},
    }
    settings = world_folder(root, source=source, **sections)
    if canary:
        drawn(root / "canary" / world, world, CANARY_FIRST, canary, labelled=True)
        layout = StateLayout(settings.state)
        add_canary(settings, layout, root / "canary" / world)
        import_canary(settings, layout)
    with DrivenDaemon(root / "run" / "mfmd.yaml") as driven:
        driven.wait_until_serving(1, 90.0)
        registry, committed = driven.registry, STREAM
        driven.drop(drawn(root / "stream" / world, world, FIRST - STREAM, STREAM, labelled=False))
        driven.wait_for(lambda: _observed(driven) >= STREAM or None, "the observer", WAIT_SECONDS)
        base = 1 if origin == "released" else _added(driven, folder / f"{origin}.safetensors")
        for number, model in enumerate(chosen(folder, origin, count)):
            version = _added(driven, model.weights)
            if registry.serving_version() != base:
                registry.promote(base, by="benchmark", reason="the version before")
            driven.wait_until_serving(base, 60.0)
            registry.promote(version, by="gate", reason="forced by a benchmark", round=version)
            fresh = drawn(root / "fresh" / world, world, FIRST + MOST * number, MOST, labelled=False)
            _watched(driven, version)
            _wait_for_answer(driven, version)
            while fresh and _watched(driven, version).stage == "watching":
                committed += BURST
                driven.drop([fresh.pop() for _ in range(BURST)])
                driven.wait_until_committed(committed, WAIT_SECONDS)
                _wait_for_answer(driven, version)
            yield model, _watched(driven, version)


def _added(driven: DrivenDaemon, weights: Path) -> int:
    child = driven.registry.manifest(1).model_copy(update={"parent": 1})
    version: int = driven.registry.add(weights, child, by="benchmark").version
    return version


def _observed(driven: DrivenDaemon) -> int:
    if not driven.layout.observations.exists():
        return 0
    with Observations.open(driven.layout.observations, writable=False) as observations:
        return len(observations.after(0))


def _watched(driven: DrivenDaemon, version: int) -> Probation:
    """Return the probation of `version`, once it has begun."""

    def begun() -> Probation | None:
        record = read_record(driven.layout.probation, Probation, "")
        return record if record is not None and record.version == version else None

    return driven.wait_for(begun, f"the probation of version {version}", WAIT_SECONDS)


def _wait_for_answer(driven: DrivenDaemon, version: int) -> None:
    """Wait until nothing was asked for `IDLE_SECONDS`: the frames that arrived are compared, or too few for a batch."""
    idle = time.monotonic()
    while _watched(driven, version).stage == "watching" and time.monotonic() - idle < IDLE_SECONDS:
        if _watched(driven, version).comparison is not None:
            idle = time.monotonic()
        time.sleep(0.2)


def row(mode: str, world: str, origin: str, results: Sequence[tuple[Forced, Probation]]) -> str:
    """Return one line of the table."""
    cells = [mode, world, origin]
    for sign in (-1.0, 1.0):
        side = [record for model, record in results if sign * model.gain > POINT]
        back = [record for record in side if record.stage in ("cooling_down", "rolled_back")]
        frames = sorted(len(record.worse) for record in back)
        cells += [f"{len(back)} of {len(side)}", str(frames[len(frames) // 2]) if frames else "-"]
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    """Print one line a run, and the models that were judged wrongly."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--bank", type=Path, required=True)
    parser.add_argument("--worlds", nargs="+", default=["dusk", "night"])
    parser.add_argument("--origins", nargs="+", default=["released", "adapted"])
    parser.add_argument("--count", type=int, default=5, help="worse and better models of each world and origin")
    parser.add_argument("--canary", type=int, default=0, help="labelled images of the world")
    parser.add_argument("--modes", nargs="+", choices=("source", "free"), default=["source", "free"])
    options = parser.parse_args()
    print("| mode | world | before | worse: rolled back | frames | better: rolled back | frames |")
    print("|---|---|---|---|---|---|---|", flush=True)
    for mode in options.modes:
        for world in options.worlds:
            for origin in options.origins:
                folder, results = options.bank / "bank" / world, []
                how = {"source": mode == "source", "canary": options.canary}
                for model, record in run(options.root, folder, world, origin, options.count, **how):
                    results.append((model, record))
                    print(f"  {model.name} {model.gain:+.1f}: {record.stage}, {record.reason}", flush=True)
                print(row(mode, world, origin, results), flush=True)


if __name__ == "__main__":
    main()
