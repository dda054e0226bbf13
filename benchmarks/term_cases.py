"""What `step_time.py --terms` times: every term beside its base, alone and with MFM too.

A base is the same recipe on the same network without the term. Terms of a ViT (masked tokens, MFM-DA's low-rank
tokens) have a ViT below both. ViTs are drawn with random weights, as `step_cases.draw_state` says.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from added_terms import TERMS
from step_cases import Case, Sections, named

from configs.load import merge

MFM_OFF, MFM_ON = {"mfm": {"enabled": False}}, {"mfm": {"enabled": True}}
MASKED_IMAGE: dict[str, Any] = {"name": "mic", "rare_class_sampling": False, "feature_distance_weight": 0.0}
"""MIC's loss over the losses of DACS."""
REPLAYED = ("translation", "class_bce")
"""Terms of MFM-DA that learn from source labels; any recipe takes them."""
TITLES = (
    "mfm",
    "interval",
    *TERMS,
    *REPLAYED,
    "foundation",
    "omuda_feature",
    "masked_tokens",
    "mfm_da",
    "masked_image",
)
"""Names of the terms."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A term and its base."""

    title: str
    """Name of the term, for `--terms`."""
    base: Sections
    """Settings of the base."""
    added: Sections
    """Settings of the base with the term."""
    host: str
    """What the table calls the base."""
    turn: int = 1
    """Optimizer steps in which all its losses have their turn."""


def pairs(recipe: str, vit: str, workspace: Path) -> list[Pair]:
    """Return the terms over `recipe`, and those that have a base of their own.

    `vit` names the DINOv2 that terms compare with or hosts are made of; it lies below `workspace`.
    """
    bare: Sections = {"recipe": named(recipe)}
    return [
        *(Pair(name, bare, over(recipe, term.advanced), recipe) for name, term in TERMS.items()),
        *(Pair(name, bare, over(recipe, {name: {"enabled": True}}), recipe) for name in REPLAYED),
        *frozen_pairs(recipe, workspace / vit),
        *vit_pairs(vit, workspace / vit),
        Pair(
            "masked_image", {"recipe": {**MASKED_IMAGE, "masked_image_weight": 0.0}}, {"recipe": MASKED_IMAGE}, "dacs"
        ),
    ]


def frozen_pairs(recipe: str, directory: Path) -> Iterator[Pair]:
    """Yield the terms that a frozen encoder in `directory` gives features for."""
    distance = {"enabled": True, "directory": directory}
    whole = {"foundation": {**distance, "ratio": 0.0}}
    yield Pair("foundation", {"recipe": named(recipe)}, over(recipe, whole), recipe)
    yield Pair("omuda_feature", {"recipe": named("omuda")}, over("omuda", {"foundation": distance}), "omuda")


def vit_pairs(vit: str, directory: Path) -> Iterator[Pair]:
    """Yield masked tokens on the light head of `vit`, and MFM-DA on that ViT frozen with low-rank tokens."""
    light = {"network": {"name": "light", "encoder": vit}}
    masked: Sections = {"recipe": {**MASKED_IMAGE, "advanced": {"masked_tokens": True}}, **light}
    without: Sections = {"recipe": {**MASKED_IMAGE, "masked_image_weight": 0.0}, **light}
    yield Pair("masked_tokens", without, masked, "vit dacs")
    family, _, size = vit.rpartition("_")
    frozen = {"network": {"name": "unet", "encoder": f"{family}_tokens_{size}", "pretrained": directory}}
    yield Pair("mfm_da", {"recipe": named("dacs"), **frozen}, {"recipe": named("mfm_da"), **frozen}, "tokens dacs", 3)


def over(recipe: str, advanced: dict[str, Any]) -> Sections:
    """Return `recipe` with `advanced` settings."""
    return {"recipe": merge(named(recipe), {"advanced": advanced})}


def term_cases(recipe: str, vit: str, workspace: Path) -> dict[str, list[tuple[Case, Case]]]:
    """Return by term the pairs of cases to time: base and term, base and term with MFM."""
    bare: Sections = {"recipe": named(recipe)}
    base, lazy = Case(recipe, {**bare, **MFM_OFF}), {"mfm": {"enabled": True, "ablation": {"interval": 2}}}
    found = {
        "mfm": [(base, Case(f"{recipe}+mfm", {**bare, **MFM_ON}))],
        "interval": [(base, Case(f"{recipe}+mfm, interval 2", {**bare, **lazy}, turn=2))],
    }
    for pair in pairs(recipe, vit, workspace):
        host = Case(pair.host, {**pair.base, **MFM_OFF})
        found[pair.title] = [
            (host, Case(f"{pair.host}+{pair.title}", {**pair.added, **MFM_OFF}, turn=pair.turn)),
            (host, Case(f"{pair.host}+mfm+{pair.title}", {**pair.added, **MFM_ON}, turn=pair.turn + (pair.turn > 1))),
        ]
    return found
