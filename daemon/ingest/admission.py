"""Decide which readable images enter the buffer, and which are skipped: near-duplicates, and images too close in time.

The built-in rules see no pixels: they compare the catalog's facts about a source's frames, and the frames that wait
for their commit. Ingest's one thread calls it in the order in which files are prepared.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from configs.plugins import ADMISSION, load_plugin
from configs.watch import AdmissionSettings
from daemon.runtime.logs import get_logger
from storage.buffer.catalog import Catalog
from storage.buffer.frames import NewFrame
from storage.media.perceptual_hash import distance

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Skip:
    """Why an image is not stored."""

    reason: str
    """One of SKIP_REASONS."""
    detail: str
    """The frame it is near to, and how near."""
    pending: bool
    """Whether that frame is not committed yet: the skip is recorded only after its commit."""


class Admission:
    """Judges one frame at a time."""

    def __init__(self, settings: AdmissionSettings, catalog: Catalog) -> None:
        """Raise ConfigError for a plug-in that cannot be imported."""
        self._settings, self._catalog = settings, catalog
        setting = "admission.advanced.policies"
        self._policies = {name: load_plugin(name, ADMISSION, setting) for name in settings.advanced.policies}

    @property
    def _admits_all(self) -> bool:
        return self._settings.near_duplicate_bits is None and self._settings.min_spacing_seconds <= 0

    def judge(self, new: NewFrame, pending: Sequence[NewFrame]) -> Skip | None:
        """Return why `new` is skipped, or None when it enters.

        `pending` are accepted frames that wait for their commit. Known content enters: the commit records it as a
        duplicate, which says more.
        """
        if self._admits_all and not self._policies:
            return None
        if any(new.digest == other.digest for other in pending) or self._catalog.has_digest(new.digest):
            return None
        mine = [other for other in pending if other.source == new.source]
        return self._near_duplicate(new, mine) or self._too_close(new, mine) or self._unwanted(new)

    def _unwanted(self, new: NewFrame) -> Skip | None:
        """Ask the plug-ins; an image that one fails on enters, because no image is lost through an error of theirs."""
        for name, policy in self._policies.items():
            try:
                reason = policy(new)
            except Exception as error:  # noqa: BLE001  whatever that package raises
                log.error("admission_policy_failed", policy=name, file=new.file.path, reason=repr(error))
                continue
            if reason is not None:
                return Skip("policy", f"{name}: {reason}", False)
        return None

    def _near_duplicate(self, new: NewFrame, pending: Sequence[NewFrame]) -> Skip | None:
        bits, recent = self._settings.near_duplicate_bits, self._settings.advanced.near_duplicate_recent
        if bits is None or not new.phash:
            return None
        waiting = [(other.phash, other.file.path, 0) for other in reversed(pending) if other.phash][:recent]
        left = recent - len(waiting)
        stored = self._catalog.recent_hashes(new.source, left) if left else []
        seen = waiting + [(phash, name, number) for number, name, phash in stored]
        nearest = min(((distance(new.phash, phash), name, number) for phash, name, number in seen), default=None)
        if nearest is None or nearest[0] > bits:
            return None
        apart, name, number = nearest
        limit = f"admission.near_duplicate_bits is {bits}"
        return Skip("near_duplicate", f"{apart} of 64 bits from {_named(name, number)}; {limit}", not number)

    def _too_close(self, new: NewFrame, pending: Sequence[NewFrame]) -> Skip | None:
        within = self._settings.min_spacing_seconds
        if within <= 0:
            return None
        near = [(abs(other.captured_at - new.captured_at), other.file.path, 0) for other in pending]
        stored = self._catalog.nearest_capture(new.source, new.captured_at, within)
        if stored is not None:
            number, name, at = stored
            near.append((abs(at - new.captured_at), name, number))
        apart, name, number = min(near, default=(within, "", 0))
        if apart >= within:
            return None
        limit = f"admission.min_spacing_seconds is {within:g}"
        return Skip("too_close", f"{apart:.3g} s from {_named(name, number)}; {limit}", not number)


def _named(name: str, number: int) -> str:
    return f"{name} (frame {number})" if number else name
