"""What `adaptation.py` compares: starting points and arms, as settings on top of the preset of their data set."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml
from adaptation_sets import CAMVID, FUNDUS, DataSet
from added_terms import PAIRS, PUBLISHED, TERMS

from configs.recipe import RECIPES
from configs.settings import Settings

MFM_OFF = {"mfm.enabled": False}
MFM_ON = {"mfm.enabled": True}
THINGS = {"recipe.thing_classes": ["sign", "car", "pedestrian", "bicyclist"]}
GOLD = {"recipe.name": "gold", **MFM_OFF, "round.optim.learning_rate": 1e-3, "round.optim.head_multiplier": 10.0}
DAFORMER = {"recipe.name": "daformer", **THINGS}
MIC = {"recipe.name": "mic", **THINGS}
OMUDA = {"recipe.name": "omuda", **THINGS}
MASKED = {
    "recipe.name": "mic",
    "recipe.feature_distance_weight": 0.0,
    "recipe.rare_class_sampling": False,
    "recipe.ema_decay": 0.99,
    **{f"recipe.margin_{side}": 0.0 for side in ("top", "bottom", "left", "right")},
}
"""MIC's loss over DACS."""
DAFORMER_MASKED = {
    **DAFORMER,
    "recipe.name": "mic",
    "recipe.margin_left": 0.0,
    "recipe.margin_right": 0.0,
    "recipe.margin_of": "crop",
}
"""MIC's loss over DAFormer, whose margins are those of a crop, at its top and bottom alone."""
NEAR = {
    "recipe.name": "daformer",
    "recipe.rare_class_sampling": False,
    "recipe.ema_decay": 0.99,
    **{f"recipe.margin_{side}": 0.0 for side in ("top", "bottom")},
}
"""DACS with DAFormer's feature distance to the released network, over every class."""

STRONG = {
    "pretrain.advanced.jitter": 0.5,
    "pretrain.advanced.jitter_probability": 0.8,
    "pretrain.advanced.gamma": 1.0,
    "pretrain.advanced.grayscale_probability": 0.1,
    "pretrain.advanced.blur_probability": 0.3,
}

Overrides = Mapping[str, Any]
"""Settings by dotted name, `round.steps` for example."""


@dataclass(frozen=True, slots=True)
class Arm:
    """One way to adapt the start to the target."""

    title: str
    """As the table names it."""
    settings: Overrides
    """Beyond the preset's."""
    source: bool = True
    """Whether labelled source images are replayed."""
    trains: bool = True
    """Off: the start itself is scored."""
    recipe: str | None = None
    """The arm that this one adds Masked Feature Modeling, another term, or a measure against forgetting to."""
    averages: bool = False
    """Whether averages of candidate and start (`round.advanced.average_ratios`) are scored too."""


@dataclass(frozen=True, slots=True)
class Start:
    """One source model that arms start from."""

    title: str
    """As the table names it."""
    settings: Overrides = field(default_factory=dict)
    """Beyond the preset's."""
    data_set: DataSet = CAMVID


STARTS = {
    "mild": Start("mild: flip, scale, mild jitter"),
    "strong": Start("strong: also strong photometric augmentation", STRONG),
}
"""Of CamVid."""
ALL_STARTS = STARTS | {"retina": Start("retina: `fundus.py --seeds 1`", {"pretrain.advanced.seed": 1}, FUNDUS)}

ARMS = {
    "source": Arm("source only", {}, trains=False),
    "bn": Arm("BN statistics", {"recipe.name": "bn_statistics"}, source=False),
    "tent": Arm("TENT", {"recipe.name": "tent"}, source=False),
    "cotta": Arm("CoTTA", {"recipe.name": "cotta", "recipe.augment_scales": [0.75, 1.0, 1.25]}, source=False),
    "gold": Arm("GOLD's directions", GOLD),
    "gold_free": Arm("source-free GOLD's directions", GOLD, source=False),
    "dacs": Arm("DACS", {"recipe.name": "dacs", **MFM_OFF}),
    "dacs_control": Arm(
        "DACS + target pass without mask", {"recipe.name": "dacs", **MFM_ON, "mfm.mask_ratio": 0.0}, recipe="dacs"
    ),
    "dacs_mfm": Arm("DACS + MFM", {"recipe.name": "dacs", **MFM_ON}, recipe="dacs"),
    "daformer": Arm("DAFormer", {**DAFORMER, **MFM_OFF}),
    "daformer_mfm": Arm("DAFormer + MFM", {**DAFORMER, **MFM_ON}, recipe="daformer"),
    "mic": Arm("MIC", {**MIC, **MFM_OFF}),
    "mic_mfm": Arm("MIC + MFM", {**MIC, **MFM_ON}, recipe="mic"),
    "dacs_masked": Arm("DACS + masked image", {**MASKED, **MFM_OFF}, recipe="dacs"),
    "dacs_masked_mfm": Arm("DACS + masked image + MFM", {**MASKED, **MFM_ON}, recipe="dacs_masked"),
    "daformer_masked": Arm("DAFormer + masked image", {**DAFORMER_MASKED, **MFM_OFF}, recipe="daformer"),
    "daformer_masked_mfm": Arm(
        "DAFormer + masked image + MFM", {**DAFORMER_MASKED, **MFM_ON}, recipe="daformer_masked"
    ),
    "omuda": Arm("OMUDA, a reading, without encoder", {**OMUDA, **MFM_OFF}),
    "omuda_mfm": Arm("OMUDA, a reading, without encoder + MFM", {**OMUDA, **MFM_ON}, recipe="omuda"),
    "source_free": Arm("source-free DACS", {"recipe.name": "dacs", **MFM_OFF}, source=False),
    "source_free_mfm": Arm(
        "source-free DACS + MFM", {"recipe.name": "dacs", **MFM_ON}, source=False, recipe="source_free"
    ),
}


HOSTS = {"dacs": MASKED, "dacs_mfm": MASKED, "daformer": DAFORMER_MASKED, "daformer_mfm": DAFORMER_MASKED}
"""Arms that terms are added to, and the settings that add the masked image to each."""


def term_arms() -> dict[str, Arm]:
    """Return each term, pairs of them, and pairs with the masked image, over DACS and DAFormer, and both with MFM."""
    found = {}
    for host, masked in HOSTS.items():
        base = ARMS[host]
        for name, term in (TERMS | PAIRS).items():
            switches = {f"recipe.advanced.{key}": value for key, value in term.advanced.items()}
            found[f"{host}_{name}"] = Arm(f"{base.title} + {term.title}", {**base.settings, **switches}, recipe=host)
            if name in PUBLISHED:
                title, settings = f"{base.title} + masked image + {term.title}", {**base.settings, **masked}
                found[f"{host}_masked_{name}"] = Arm(title, {**settings, **switches}, recipe=host)
    return found


MEASURES: dict[str, tuple[str, Overrides]] = {
    "distance": ("feature distance", {**NEAR, "recipe.feature_distance_weight": 0.005}),
    "distance_10": ("feature distance, 10 times its weight", {**NEAR, "recipe.feature_distance_weight": 0.05}),
    "source_2": ("source loss twice", {"recipe.advanced.source_weight": 2.0}),
    "anchor_20": ("anchor 20", {"recipe.anchor_weight": 20.0}),
    "anchor_100": ("anchor 100", {"recipe.anchor_weight": 100.0}),
}
"""What may keep the source: title and settings."""
FREE_MEASURES: dict[str, tuple[str, Overrides]] = {
    "anchor_0": ("no anchor", {"recipe.anchor_weight": 0.0}),
    "anchor_100": ("anchor 100", {"recipe.anchor_weight": 100.0}),
}
"""The same without source images, where an anchor of 20 is the default."""


def forgetting_arms() -> dict[str, Arm]:
    """Return the averages of DACS + MFM with its start, and each measure against forgetting over it."""
    found = {}
    for host, measures in (("dacs_mfm", MEASURES), ("source_free_mfm", FREE_MEASURES)):
        base, prefix = ARMS[host], "forget" if ARMS[host].source else "forget_free"
        found[prefix] = replace(base, averages=True)
        for name, (title, settings) in measures.items():
            found[f"{prefix}_{name}"] = replace(
                base, title=f"{base.title}, {title}", settings={**base.settings, **settings}, recipe=prefix
            )
    return found


FORGETTING = forgetting_arms()
ARMS |= term_arms() | FORGETTING


def settings_of(start: Start, data: Path, work: Path, state: Path, *layers: Overrides) -> Settings:
    """Return the preset of `start` with the paths, its settings, then each of `layers`; later layers win.

    The preset's recipe settings apply to each recipe that has them.
    """
    values = yaml.safe_load(start.data_set.preset.read_text(encoding="utf-8"))
    values["state"], values["watch"] = str(state), {"folder": str(state / "drop")}
    values["source"] = {name: str(folder) for name, folder in start.data_set.folders(data, work).items()}
    override(values, start.settings, *layers)
    return Settings.model_validate(values)


def override(values: dict[str, Any], *layers: Overrides) -> None:
    """Set each of `layers` in `values`, later ones win; of another recipe only what that recipe has is kept."""
    for name, value in (item for layer in layers for item in layer.items()):
        *sections, last = name.split(".")
        section = values
        for part in sections:
            section = section.setdefault(part, {})
        section[last] = value
    known = RECIPES[values["recipe"].get("name", "dacs")].model_fields
    values["recipe"] = {key: value for key, value in values["recipe"].items() if key in known}
