"""Notice that the code of an own network changed: the same weights then give other masks, and nothing else tells."""

import inspect
import logging
import sys
from pathlib import Path

from torch import nn

from adapters.networks.network import SegmentationNetwork
from storage.durable.digest import digest_of
from storage.registry.manifest import Manifest

log = logging.getLogger(__name__)
CHANGED = (
    "the source files of {name} are not those that it was registered with, so its masks may differ; install again what "
    "it was made with, or give the changed network a new name and register it anew"
)


def source_digest(name: str, model: nn.Module) -> str:
    """Return the SHA-256 of the source files that build `model` (`package.module:callable`); empty if unknown.

    These are the file of that module, and those of the classes of `model` and its submodules in the same package.
    Functions of other files are not among them.
    """
    own = name.partition(":")[0]
    package = own.partition(".")[0]
    modules = {own, *(type(part).__module__ for part in model.modules())}
    digests = []
    for module in sorted(it for it in modules if it.partition(".")[0] == package and it in sys.modules):
        try:
            digests.append(f"{module} {digest_of(Path(inspect.getfile(sys.modules[module])))}")
        except (OSError, TypeError):
            continue  # compiled into a program, or gone: it cannot be compared
    return digest_of("\n".join(digests).encode()) if digests else ""


def warn_of_changes(network: SegmentationNetwork, manifest: Manifest) -> None:
    """Log a warning when `network` was built from other source files than `manifest` records."""
    if manifest.network_code and network.source_digest not in ("", manifest.network_code):
        what = CHANGED.format(name=manifest.network.get("name"))
        log.warning("version %d: %s", manifest.version, what)
