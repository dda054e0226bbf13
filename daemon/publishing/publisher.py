"""Keep mirrors at the serving version (`publish`): after every promotion and rollback, while the daemon runs.

The publisher polls the serving ref, like an inference plane. It counts, reports and retries failures; nothing waits for
it.
"""

import time
from collections.abc import Sequence
from pathlib import Path

from configs.settings import Settings
from daemon.metrics import PublishMetrics
from daemon.publishing.export import MirrorExport
from daemon.publishing.mirror_target import MirrorTarget
from daemon.runtime.activity import MirrorActivity
from daemon.runtime.backoff import Backoff
from storage.layout import StateLayout
from storage.registry.mirrors import HuggingFaceMirror, Mirror, TritonMirror
from storage.registry.registry import CheckpointRegistry

LOOK_SECONDS = 0.5
"""Interval at which the serving ref is polled (seconds)."""
RETRIES = Backoff(base=5.0, cap=600.0, jitter=0.2)
"""Delays after failures; a change of the serving version is tried at once."""


class Publisher:
    """Keeps every configured mirror at the serving version. `step` belongs to one thread."""

    def __init__(
        self,
        settings: Settings,
        config: Path,
        registry: CheckpointRegistry,
        metrics: PublishMetrics,
        retries: Backoff = RETRIES,
    ) -> None:
        """`config`: the file that exports read these settings from."""
        self._registry = registry
        layout = StateLayout(settings.state)
        self._targets = [
            MirrorTarget(mirror, MirrorExport(mirror, config, layout), registry, metrics, retries)
            for mirror in configured_mirrors(settings)
        ]

    def step(self) -> float:
        """Bring mirrors closer to the serving version; return the seconds until the next call."""
        serving = self._registry.readable_refs()[0].get("serving") if self._targets else None
        for target in self._targets:
            if serving is not None:
                target.tick(serving.version, time.monotonic())
        return LOOK_SECONDS

    def states(self) -> list[MirrorActivity]:
        """Return the state of each mirror."""
        return [target.state for target in self._targets]

    def stop(self) -> None:
        """Stop running exports; the next one removes their leftovers. Call after the last step."""
        for target in self._targets:
            target.export.stop()


def configured_mirrors(settings: Settings) -> Sequence[Mirror]:
    """Return the mirrors that `publish` configures."""
    triton, hugging_face = settings.publish.triton, settings.publish.huggingface
    found: list[Mirror] = []
    if triton is not None:
        found.append(TritonMirror(triton, settings.serving.max_batch_images))
    if hugging_face is not None:
        found.append(HuggingFaceMirror(hugging_face))
    return found
