"""Networks of an operator's own package: whether the configured one works, and which ones the registry names."""

import subprocess
from collections.abc import Iterator
from contextlib import suppress

from configs.network import is_own
from configs.settings import Settings
from daemon.doctor.finding import Finding, fail, ok, warn
from daemon.runtime.process_group import PYTHON
from storage.errors import StorageError
from storage.layout import StateLayout
from storage.registry.manifest import Manifest
from storage.registry.registry import CheckpointRegistry

SECONDS = 120.0
"""Longest wait for the network to be built and checked (seconds)."""
CHANGED = "install again what they were made with, or give the changed network a new name and register it anew"
PROGRAM = """
import sys
from adapters.errors import AdapterError
from adapters.networks.build import build_checked
from configs.network import Architecture
try:
    network = build_checked(Architecture.model_validate_json(sys.argv[1]), int(sys.argv[2]))
except AdapterError as error:
    sys.exit(str(error))
size = sum(value.numel() for value in network.parameters())
print(f"{size:,} parameters, maps of {network.feature_channels} channels")
print(network.source_digest)
"""


def examine_own_network(settings: Settings) -> list[Finding]:
    """Return findings about `network.name: package.module:callable`; none when nothing names such a network.

    A child builds it, because the control plane never imports torch.
    """
    name = settings.network.name
    findings = list(_built(settings)) if is_own(name) else []
    if others := sorted({found for found in _registered(settings) if found != name}):
        detail = f"versions of the registry name {', '.join(others)}, which the configuration does not"
        remedy = "mfmd runs that code when it loads such a version; keep it installed, or see docs/how-to/security.md"
        findings.append(warn("network", detail, remedy))
    return findings


def _built(settings: Settings) -> Iterator[Finding]:
    name, remedy = settings.network.name, "correct network.name or the package; docs/how-to/own-network.md"
    given = (settings.network.architecture().model_dump_json(), str(len(settings.classes)))
    try:
        answer = subprocess.run([*PYTHON, "-c", PROGRAM, *given], capture_output=True, text=True, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        yield fail("network", f"{name}: not built within {SECONDS:.0f} s", remedy)
        return
    if answer.returncode != 0:
        yield fail("network", (answer.stderr.strip().splitlines() or ["no message"])[-1], remedy)
        return
    about, code = answer.stdout.splitlines()[-2:]
    yield ok("network", f"{name} keeps the contract: {about}")
    made = settings.network.architecture().model_copy(update={"pretrained": None}).model_dump(mode="json")
    mine = [manifest for manifest in _manifests(settings) if manifest.network == made and manifest.network_code]
    if changed := [str(manifest.version) for manifest in mine if code and manifest.network_code != code]:
        detail = f"the source files of {name} are not those that versions {', '.join(changed)} were registered with"
        yield warn("network_code", f"{detail}: their masks may differ", CHANGED)


def _registered(settings: Settings) -> Iterator[str]:
    """Yield the own networks that manifests name."""
    names = (str(manifest.network.get("name", "")) for manifest in _manifests(settings))
    yield from filter(is_own, names)


def _manifests(settings: Settings) -> Iterator[Manifest]:
    """Yield the manifest of each version; damaged ones are another finding."""
    registry = CheckpointRegistry(StateLayout(settings.state).checkpoints)
    for version in registry.versions():
        with suppress(StorageError):
            yield registry.manifest(version)
