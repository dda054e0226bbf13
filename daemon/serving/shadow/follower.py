"""Keep the version of `refs/shadow` in the idle slot, while another version serves."""

from daemon.runtime.logs import get_logger
from daemon.serving.metrics import ServingMetrics
from daemon.serving.versions.slots import Resident, Slots
from daemon.serving.versions.swap import Swapper
from storage.registry.manifest import Ref
from storage.registry.registry import CheckpointRegistry

log = get_logger(__name__)


class ShadowFollower:
    """Loads and ends shadows, in the follower's thread, because it shares the idle slot with the swaps."""

    def __init__(self, registry: CheckpointRegistry, slots: Slots, swapper: Swapper, metrics: ServingMetrics) -> None:
        self._registry = registry
        self._slots = slots
        self._swapper = swapper
        self._metrics = metrics
        self._failed: tuple[Ref | None, int] | None = None

    def look(self) -> None:
        """Poll the ref once. Never raises; a candidate that fails is retried when either version changes."""
        live, ref = self._slots.live, None
        if live is None:
            return
        try:
            ref = self._registry.ref("shadow")
            if (ref, live.version) != self._failed:
                self._follow(ref, live.version)
        except Exception as error:
            self._failed = (ref, live.version)
            self._metrics.shadow_failed.inc()
            log.exception("shadow_failed", version=ref and ref.version, error=str(error))
        shadow = self._slots.shadow
        self._metrics.shadow_version.set(shadow.version if shadow else 0)

    def _follow(self, ref: Ref | None, live: int) -> None:
        shadow = self._slots.shadow
        wanted = ref.version if ref is not None and ref.version != live else None
        if wanted is None:
            if not self._is_promoted(shadow):
                self._swapper.end_shadow()
        elif shadow is None or shadow.version != wanted:
            self._swapper.shadow(wanted)

    def _is_promoted(self, shadow: Resident | None) -> bool:
        """Return whether the shadow was promoted since the last poll of the serving ref: the next poll flips to it.

        A promotion moves `serving` before the shadow's ref is removed. A poll that sees only the removal would free the
        slot for nothing, and read the weights again.
        """
        if shadow is None:
            return False
        serving = self._registry.readable_refs()[0].get("serving")
        return serving is not None and serving.version == shadow.version
