"""Two slots in memory for versions: one live, one idle. A swap exchanges two pointers.

A request takes a lease on a version when it is admitted and keeps it until it is answered, so it finishes on the
version it began with. Weights are only written into a network that nobody holds: a version is first removed from the
idle slot (no new leases), then its last lease is awaited. The idle slot holds the version that served before, for
rollbacks, or a candidate that runs in the live one's shadow and answers no request.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from adapters.inference.forward import ServedForward
from daemon.serving.errors import NotReady, VersionNotLoaded
from storage.media.images import Fit
from storage.registry.manifest import Manifest


@dataclass(slots=True, eq=False)
class Resident:
    """A version in memory; its weights do not change while anybody holds it."""

    version: int
    manifest: Manifest
    forward: ServedForward
    """What runs."""
    shadow: bool = False
    """Whether it runs in the live version's shadow; then it answers no request."""
    warmed: set[tuple[int, int]] = field(default_factory=set)
    """Sizes (height, width) at which its outputs were found finite; for the follower's thread only."""
    holds: int = 0
    """Requests and batches that use it; guarded by the lock of `Slots`."""

    @property
    def input_size(self) -> tuple[int, int]:
        """Height and width of the frame that images are scaled into (pixels)."""
        return self.manifest.input_height, self.manifest.input_width

    @property
    def fit(self) -> Fit:
        """How images are scaled to that size."""
        return Fit(self.manifest.input_fit, self.manifest.input_resample)

    @property
    def digest(self) -> str:
        """Hex SHA-256 of the weights file; empty if the manifest names none."""
        return next((item.sha256 for name, item in self.manifest.files.items() if name.endswith(".safetensors")), "")


class Slots:
    """The live and the idle version; every method may be called from any thread."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self.live: Resident | None = None
        """The version that answers new requests; for others to read, like `idle`."""
        self.idle: Resident | None = None
        """The version in the idle place, whichever it is."""

    @property
    def shadow(self) -> Resident | None:
        """The candidate that runs in the live version's shadow."""
        idle = self.idle
        return idle if idle is not None and idle.shadow else None

    @property
    def versions(self) -> tuple[int, ...]:
        """Versions that answer, the live one first: not a shadow."""
        with self._changed:
            return tuple(item.version for item in (self.live, self.idle) if item is not None and not item.shadow)

    @contextmanager
    def lease(self, version: int | None = None) -> Iterator[Resident]:
        """Hold the live version, or the one requested by number, until the block ends.

        Raises NotReady when nothing is live, VersionNotLoaded when `version` is not in memory.
        """
        with self._changed:
            resident = self._find(version)
            resident.holds += 1
        try:
            yield resident
        finally:
            self.release(resident)

    @contextmanager
    def lease_shadow(self) -> Iterator[Resident | None]:
        """Hold the shadow until the block ends; None when there is none."""
        with self._changed:
            resident = self.shadow
            if resident is not None:
                resident.holds += 1
        try:
            yield resident
        finally:
            if resident is not None:
                self.release(resident)

    def hold(self, resident: Resident) -> None:
        """Add a user of a version that is already held (a lease lasts until its request is answered)."""
        with self._changed:
            if resident.holds < 1:
                raise RuntimeError(f"version {resident.version} is not leased; its weights may change")
            resident.holds += 1

    def release(self, resident: Resident) -> None:
        """Remove a user."""
        with self._changed:
            resident.holds -= 1
            self._changed.notify_all()

    def flip_to(self, version: int) -> bool:
        """Make the idle version live if it is `version`; return False if it is not in the idle slot."""
        with self._changed:
            if self.idle is None or self.idle.version != version:
                return False
            self.live, self.idle = self.idle, self.live
            self.live.shadow = False
            return True

    def retire_idle(self, timeout: float) -> Resident | None:
        """Remove the version from the idle slot and wait up to `timeout` seconds until nobody holds it.

        Returns it when its network may be overwritten; None when there was none or somebody still holds it (the last
        holder then frees the network).
        """
        with self._changed:
            retired, self.idle = self.idle, None
            if retired is None or not self._changed.wait_for(lambda: retired.holds == 0, timeout):
                return None
            return retired

    def install(self, resident: Resident) -> None:
        """Make `resident` live, and what was live idle; a shadow goes into the idle place, which must be free."""
        with self._changed:
            if self.idle is not None:
                raise RuntimeError(f"the idle place still holds version {self.idle.version}; retire it first")
            if resident.shadow:
                self.idle = resident
            else:
                self.live, self.idle = resident, self.live

    def _find(self, version: int | None) -> Resident:
        if self.live is None:
            raise NotReady
        for resident in (self.live, self.idle):
            if resident is not None and (version is None or (resident.version == version and not resident.shadow)):
                return resident
        raise VersionNotLoaded(str(version), self.versions)
