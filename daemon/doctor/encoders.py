"""Directories of `network.pretrained` and of the frozen encoder: whether their loaders accept them."""

import json
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

from configs.network import is_own
from configs.recipe import SelfTrainingSettings
from configs.settings import Settings
from daemon.doctor.finding import Finding, fail, ok
from daemon.runtime.process_group import PYTHON

SECONDS = 120.0
"""Longest wait for both directories (seconds)."""
NETWORK, FOUNDATION = "network.pretrained", "recipe.advanced.foundation.directory"
PROGRAM = """
import json, sys
from pathlib import Path
import torch
from adapters.errors import AdapterError
from adapters.networks.build import build_network
from configs.network import Architecture

def loaded(architecture, classes, directory):
    if architecture is not None:
        return build_network(Architecture.model_validate(architecture), classes)
    from adapters.networks.foundation_model import load_foundation_model
    return load_foundation_model(Path(directory))

problems = {}
for name, given in json.loads(sys.argv[1]).items():
    try:
        with torch.device("meta"):
            loaded(*given)
    except AdapterError as error:
        problems[name] = str(error)
print(json.dumps(problems))
"""
"""Loads each directory on the meta device: everything is compared, but no value is read or kept in memory."""


def examine_encoders(settings: Settings) -> list[Finding]:
    """Return findings about the directories with encoder weights that the configuration uses; none without any.

    A child runs their loaders, because the control plane never imports torch.
    """
    used = dict(_used(settings))
    if not used:
        return []
    problems = _problems(settings, used)
    return [_finding(name, path, problems.get(name, ""), settings) for name, path in used.items()]


def _used(settings: Settings) -> Iterator[tuple[str, Path]]:
    """Yield setting and directory."""
    if settings.network.pretrained is not None and not is_own(settings.network.name):
        yield NETWORK, settings.network.pretrained
    if isinstance(settings.recipe, SelfTrainingSettings):
        foundation = settings.recipe.advanced.foundation
        if foundation.enabled and foundation.directory is not None:
            yield FOUNDATION, foundation.directory


def _problems(settings: Settings, used: Mapping[str, Path]) -> dict[str, str]:
    """Return what the loaders say against a directory, by its setting."""
    network = [settings.network.architecture().model_dump(mode="json"), len(settings.classes), None]
    given = {name: network if name == NETWORK else [None, None, str(path)] for name, path in used.items()}
    command = [*PYTHON, "-c", PROGRAM, json.dumps(given)]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        return dict.fromkeys(used, f"not examined within {SECONDS:.0f} s")
    if answer.returncode != 0:
        why = (answer.stderr.strip().splitlines() or [f"exit status {answer.returncode}"])[-1]
        return dict.fromkeys(used, f"cannot be examined: {why}")
    problems: dict[str, str] = json.loads(answer.stdout.strip().splitlines()[-1])
    return problems


def _finding(name: str, path: Path, problem: str, settings: Settings) -> Finding:
    short = "pretrained" if name == NETWORK else "foundation"
    if problem:
        text = problem if problem.startswith("network") else f"{name}: {problem}"
        return fail(short, text, f"correct {name} or the files in it")
    reader = f"network.encoder {settings.network.encoder}" if name == NETWORK else "the foundation distance"
    detail = f"{name}: config.json and the names, shapes and types of the weights in {path} fit {reader}"
    return ok(short, f"{detail}; their values are read in training only")
