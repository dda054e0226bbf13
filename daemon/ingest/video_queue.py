"""Videos that ingest has in hand: one is decoded at a time, in small parts between which images have their turn.

So a long video holds up nothing, and a folder full of them opens one file and one decoder.
"""

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor

from daemon.ingest.decode import Duplicate, Finished, Later, Refusal, Skipped
from daemon.ingest.video_reel import Ended, Interrupted, Known, Part, Reel, Unusable
from daemon.watch.arrival import Arrival


class VideoQueue:
    """Belongs to ingest's thread; the parts are decoded in `pool`, each of at most `part_frames`."""

    def __init__(self, pool: ThreadPoolExecutor, part_frames: int) -> None:
        self._pool, self._part_frames = pool, part_frames
        self._reels: deque[Reel] = deque()
        self._busy = False

    def __len__(self) -> int:
        """Videos in hand; a part of the first may be under way."""
        return len(self._reels)

    def add(self, reel: Reel) -> None:
        """Its turn comes after those that are here."""
        self._reels.append(reel)

    def decode_on(self) -> tuple[Arrival, Future[Part]] | None:
        """Have the next part decoded; none when one is under way, or nothing is left to decode."""
        if self._busy or not self._reels:
            return None
        self._busy = True
        return self._reels[0].arrival, self._pool.submit(self._reels[0].more, self._part_frames)

    def returned(self, part: Part) -> Duplicate | Finished | Later | Refusal | Skipped | None:
        """A part is here, and each of its frames was admitted or left out: what became of the video, if it is over."""
        self._busy = False
        if part.end is None:
            return None
        self._reels.popleft()
        return _outcome(part.reel, part.end)

    def failed(self, arrival: Arrival) -> None:
        """Nothing came of this file: if it was the part under way, its video starts anew when it is taken again."""
        if self._busy and self._reels[0].arrival is arrival:
            self._busy = False
            self._reels.popleft().close()

    def close(self) -> None:
        """Let go of the video that is open; the pool must be at rest."""
        for reel in self._reels:
            reel.close()


def _outcome(
    reel: Reel, end: Ended | Unusable | Known | Interrupted
) -> Duplicate | Finished | Later | Refusal | Skipped:
    match end:
        case Ended(damage):
            if (skip := reel.skip) is None:
                return Finished(reel.arrival, reel.finished(damage))
            return Skipped(reel.arrival, skip.reason, skip.detail, reel.digest, skip.pending)
        case Unusable(reason, detail):
            return Refusal(reel.arrival, reason, detail, reel.digest or None)
        case Known():
            return Duplicate(reel.arrival, reel.digest)
        case Interrupted(error):
            return Later(reel.arrival, error)
