"""A state whose gate wants candidates to run in the shadow; tests write what planes would record."""

import shutil
from pathlib import Path
from typing import Any

from daemon.gate.promotion import advance_round
from daemon.gate.shadow import end_shadow, open_trial
from daemon.rounds.recovery import finish_round
from storage.layout import StateLayout
from storage.registry.registry import CheckpointRegistry
from storage.registry.shadow_record import ShadowRecord, ShadowRecords
from storage.rounds.folder import RoundFolder, RoundStore
from storage.rounds.verdict import Verdict
from tests.daemon.gate.round_state import State, make_state

WANTED = 20
BY_HAND = {"by": "operator", "reason": "look at it"}


class Trial(State):
    """A state whose gate asks for a shadow."""

    def judge(self, folder: RoundFolder, **more: Any) -> Verdict | None:
        """One poll; the verdict once the round has ended."""
        stage = advance_round(self.registry, folder, self.settings, **more)
        assert stage == folder.record().stage
        return None if stage == "shadowing" else folder.verdict()

    def compare(
        self,
        images: int,
        agreement: float = 0.9,
        *,
        candidate: int = 3,
        serving: int = 2,
        plane: str = "a",
        failed: int = 0,
    ) -> None:
        """What a plane would have recorded by now."""
        counts = {"images": images, "pixels": 100 * images, "same": round(100 * images * agreement), "failed": failed}
        record = ShadowRecord(candidate=candidate, serving=serving, since=1.0, updated=2.0, **counts)
        self.records.write(plane, record)

    def copy(self, name: str) -> "Trial":
        """The same state elsewhere."""
        root = self.root / name
        shutil.copytree(self.settings.state, root)
        layout = StateLayout(root)
        settings = self.settings.model_copy(update={"state": root})
        return Trial(self.root, settings, CheckpointRegistry(layout.checkpoints), RoundStore(layout.rounds))

    def start_again(self, number: int) -> None:
        """What a daemon does with a round that was left."""
        finish_round(self.rounds.folder(number), self.registry, self.settings)
        if open_trial(self.rounds) is None:
            end_shadow(self.registry, "no round waits for it")

    @property
    def records(self) -> ShadowRecords:
        """What planes recorded."""
        return ShadowRecords(StateLayout(self.settings.state).shadow)

    @property
    def shadow(self) -> tuple[int, str] | None:
        """Version in the shadow, and who put it there."""
        ref = self.registry.ref("shadow")
        return (ref.version, ref.by) if ref else None

    @property
    def moves(self) -> list[tuple[str, int | None]]:
        """What happened to version 3 or in round 1."""
        return [(item.event, item.version) for item in self.registry.history()[4:]]


def make_trial(root: Path) -> Trial:
    """A new one: 20 images within a minute, half of their pixels as served."""
    gate = {"shadow_images": WANTED, "advanced": {"shadow_agreement": 0.5, "shadow_seconds": 60.0}}
    made = make_state(root, gate=gate, serving={"shadow_fraction": 0.1})
    return Trial(made.root, made.settings, made.registry, made.rounds)
