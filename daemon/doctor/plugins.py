"""Plug-ins of other packages: whether those that the configuration names can be imported, and which are not used."""

import subprocess
from collections.abc import Iterator

from configs.buffer import BUILT_IN_EVICTION
from configs.plugins import ADMISSION, EVICTION, RECIPES, SCORES, TRANSLATIONS, refused
from configs.recipe import RECIPES as BUILT_IN_RECIPES
from configs.recipe import PluginSettings, SelfTrainingSettings
from configs.settings import Settings
from configs.terms import BUILT_IN_TRANSLATIONS
from daemon.doctor.finding import Finding, fail, ok, warn
from daemon.runtime.process_group import PYTHON

SECONDS = 120.0
"""Longest wait for the imports (seconds)."""
PROGRAM = """
import sys
from configs.errors import ConfigError
from configs.plugins import load_plugin
try:
    load_plugin(*sys.argv[1:])
except ConfigError as error:
    sys.exit(str(error))
"""


def examine_plugins(settings: Settings) -> list[Finding]:
    """Return findings about plug-ins; none without any. Children import them, because they may need torch."""
    findings = [_imported(*named) for named in _named(settings)]
    built_in = {EVICTION: BUILT_IN_EVICTION, RECIPES: BUILT_IN_RECIPES, TRANSLATIONS: BUILT_IN_TRANSLATIONS}
    return findings + [warn("plugin", told, "rename the entry point, or uninstall it") for told in refused(built_in)]


def _named(settings: Settings) -> Iterator[tuple[str, str, str]]:
    """Yield name, group and setting of each plug-in that the configuration names."""
    if settings.buffer.eviction not in BUILT_IN_EVICTION:
        yield settings.buffer.eviction, EVICTION, "buffer.eviction"
    for name in settings.admission.advanced.policies:
        yield name, ADMISSION, "admission.advanced.policies"
    for name in settings.round.advanced.scores:
        yield name, SCORES, "round.advanced.scores"
    if isinstance(settings.recipe, PluginSettings):
        yield settings.recipe.advanced.plugin, RECIPES, "recipe.advanced.plugin"
    if isinstance(settings.recipe, SelfTrainingSettings):
        translation = settings.recipe.advanced.translation
        if translation.enabled and translation.translate not in BUILT_IN_TRANSLATIONS:
            yield translation.translate, TRANSLATIONS, "recipe.advanced.translation.translate"


def _imported(name: str, group: str, setting: str) -> Finding:
    remedy = "correct or update its package; docs/how-to/plug-ins.md"
    command = [*PYTHON, "-c", PROGRAM, name, group, setting]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        return fail("plugin", f"{setting}: {name}: not imported within {SECONDS:.0f} s", remedy)
    if answer.returncode != 0:
        return fail("plugin", (answer.stderr.strip().splitlines() or ["no message"])[-1], remedy)
    return ok("plugin", f"{setting}: {name} can be imported")
