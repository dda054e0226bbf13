"""Two slots in memory for versions: one live, one idle. A swap exchanges two pointers.

A request takes a lease on a version when it is admitted and keeps it until it is answered, so it finishes on the
version it began with. Weights are only written into a network that nobody holds: a version is first removed from the
idle slot (no new leases), then its last lease is awaited. The idle slot holds the version that served before, for
rollbacks, or a candidate that runs in the live one's shadow and answers no request.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from adapters.inference.forward import ServedForward
from daemon.serving.errors import NotReady, VersionNotLoaded
from storage.registry.manifest import Manifest


class Resident:
    """A version in memory; its weights do not change while anybody holds it."""

    def __init__(self, version: int, manifest: Manifest, forward: ServedForward) -> None:
        self.version = version
        self.manifest = manifest
        self.forward = forward
        """What runs."""
        self.warmed: set[tuple[int, int]] = set()
        """Sizes (height, width) at which its outputs were found finite; only the follower's thread looks at it."""
        self.holds = 0
        """Requests and batches that use it; guarded by the lock of `Slots`."""

    @property
    def input_size(self) -> tuple[int, int]:
        """Height and width that images are fitted to (pixels)."""
        return self.manifest.input_height, self.manifest.input_width

    @property
    def digest(self) -> str:
        """Hex SHA-256 of the weights file; empty if the manifest names none."""
        return next((item.sha256 for name, item in self.manifest.files.items() if name.endswith(".safetensors")), "")


class Slots:
    """The live and the idle version; every method may be called from any thread."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._live: Resident | None = None
        self._idle: Resident | None = None
        self._idle_is_shadow = False

    @property
    def live(self) -> Resident | None:
        """The version that answers new requests."""
        with self._changed:
            return self._live

    @property
    def idle(self) -> Resident | None:
        """The version in the idle place, whichever it is."""
        with self._changed:
            return self._idle

    @property
    def shadow(self) -> Resident | None:
        """The candidate that runs in the live version's shadow."""
        with self._changed:
            return self._idle if self._idle_is_shadow else None

    @property
    def versions(self) -> tuple[int, ...]:
        """Versions that answer, the live one first: not a shadow."""
        with self._changed:
            return tuple(item.version for item in self._answering())

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
            resident = self._idle if self._idle_is_shadow else None
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
            if resident.holds == 0:
                self._changed.notify_all()

    def flip_to(self, version: int) -> bool:
        """Make the idle version live if it is `version`; return False if it is not in the idle slot."""
        with self._changed:
            if self._idle is None or self._idle.version != version:
                return False
            self._live, self._idle, self._idle_is_shadow = self._idle, self._live, False
            return True

    def retire_idle(self, timeout: float) -> Resident | None:
        """Remove the version from the idle slot and wait up to `timeout` seconds until nobody holds it.

        Returns it when its network may be overwritten; None when there was none or somebody still holds it (the last
        holder then frees the network).
        """
        with self._changed:
            retired, self._idle, self._idle_is_shadow = self._idle, None, False
            if retired is None or not self._changed.wait_for(lambda: retired.holds == 0, timeout):
                return None
            return retired

    def install(self, resident: Resident) -> None:
        """Make `resident` live; the version that was live becomes the idle one."""
        with self._changed:
            self._check_idle_is_free()
            self._live, self._idle = resident, self._live

    def install_shadow(self, resident: Resident) -> None:
        """Put `resident` into the idle slot as the live version's shadow."""
        with self._changed:
            self._check_idle_is_free()
            self._idle, self._idle_is_shadow = resident, True

    def _check_idle_is_free(self) -> None:
        if self._idle is not None:
            raise RuntimeError(f"the idle place still holds version {self._idle.version}; retire it first")

    def _answering(self) -> list[Resident]:
        idle = None if self._idle_is_shadow else self._idle
        return [item for item in (self._live, idle) if item is not None]

    def _find(self, version: int | None) -> Resident:
        if self._live is None:
            raise NotReady
        if version is None:
            return self._live
        for resident in self._answering():
            if resident.version == version:
                return resident
        raise VersionNotLoaded(str(version), tuple(item.version for item in self._answering()))
