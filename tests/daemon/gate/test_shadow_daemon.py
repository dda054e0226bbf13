"""A whole daemon with its inference plane, asked over HTTP: live answers decide whether a candidate serves."""

import io
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from PIL import Image

from adapters.checkpoints.checkpoint import save_weights
from configs.settings import Settings
from daemon.demo.driving import DrivenDaemon
from daemon.gate.promotion import advance_round
from storage.registry.shadow_record import ShadowRecords
from storage.rounds.folder import RoundFolder, RoundStore
from storage.rounds.verdict import Verdict
from tests.daemon.gate.round_state import BETTER
from tests.daemon.serving.serving_world import LIGHT, World, image_bytes, running, tiny_network, wait_until
from tests.sections import changed

WANTED, FEW = 3, 2
"""Images that decide, and those before the kill: one is missing then, and a plane writes its first record at once."""


class Driven(DrivenDaemon):
    """A daemon whose rounds are left to it as they end: their candidates are accepted on their scores."""

    client: httpx.Client
    leave: Callable[..., RoundFolder]

    def ask(self) -> int:
        """A live request; the version that answered."""
        content = image_bytes(seed=int(time.monotonic() * 1000) % 100)
        answer = self.client.post(f"{self.url('serve')}/v1/segment", content=content)
        assert answer.status_code == 200, answer.text
        return int(answer.headers["X-Checkpoint-Version"])

    def post(self, path: str, **body: object) -> httpx.Response:
        """Ask the control plane for a change."""
        headers = {"Authorization": f"Bearer {self.layout.token_file.read_text().strip()}"}
        return self.client.post(f"{self.url('daemon')}{path}", headers=headers, json=body or None)

    def page(self) -> str:
        """The operator's."""
        return self.client.get(f"{self.url('daemon')}/").text

    def sample(self, plane: str, name: str) -> float:
        """A sample of a plane's metrics; 0 without it."""
        lines = self.client.get(f"{self.url(plane)}/metrics").text.splitlines()
        return next((float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(f"{name} ")), 0.0)

    def compared(self, candidate: int, serving: int) -> int:
        """Images that the planes' files tell of."""
        record = ShadowRecords(self.layout.shadow).total(candidate, serving)
        return record.images if record else 0

    def serving(self) -> int:
        """What the ref names."""
        ref = self.registry.serving()
        assert ref is not None
        return ref.version

    def wait_for_shadow(self, version: int) -> None:
        """Until the plane runs the candidate."""
        self.wait_for(lambda: self.served_version() or None, "a version serves", 60)
        self.wait_for(lambda: self.sample("serve", "mfmd_shadow_version") == version or None, "the candidate runs", 60)

    def wait_for_end(self, number: int) -> Verdict:
        """Until the round has its verdict and its shadow is over."""
        verdict = self.wait_for(self.rounds.folder(number).verdict, "the verdict", 30)
        self.wait_for(lambda: self.registry.ref("shadow") is None or None, "the shadow's end", 30)
        return verdict

    def ask_until(self, done: Callable[[], Any], what: str) -> set[int]:
        """Ask until `done`; the versions that answered."""
        answered: set[int] = set()

        def asked() -> bool:
            answered.add(self.ask())
            return bool(done())

        wait_until(asked, what, 60)
        return answered


def leave_round(rounds: RoundStore, judged: Any, incumbent: int = 1) -> RoundFolder:
    """A round that has ended and was not judged yet; it appears complete, as for a daemon that starts."""
    spec = judged.spec.model_copy(update={"incumbent": incumbent, "released": 1})
    made = RoundStore(rounds.root.parent / "made").create(spec)
    save_weights(tiny_network(spec.round + 1, **LIGHT), made.candidate)
    made.enter("scoring")
    made.write_scores(judged.scores)
    rounds.root.mkdir(exist_ok=True)
    made.path.rename(rounds.root / made.path.name)
    return rounds.folder(spec.round)


@pytest.fixture
def driven(tmp_path: Path, a_round: Any, model: Any) -> Iterator[Driven]:
    """Version 1 serves; the daemon is not started yet."""
    world = World(tmp_path)
    world.add(1, **LIGHT)
    settings = world.settings(shadow_fraction=1.0, follow_seconds=0.05).model_dump(mode="json", exclude_none=True)
    settings |= {
        "gate": {"shadow_images": WANTED, "advanced": {"shadow_seconds": 300.0, "shadow_agreement": 0.0}},
        "control": {"port": 0},
        "observe": {"enabled": False},
        "schedule": {"enabled": False, "min_frames": 1},
        "watch": settings["watch"]
        | {"stability_seconds": 0.1, "advanced": {"rescan_seconds": 0.5, "group_seconds": 0.05}},
    }
    config = tmp_path / "mfmd.yaml"
    config.write_text(yaml.safe_dump(settings))
    made = Driven(config)
    made.client = httpx.Client(timeout=30.0)
    made.leave = lambda number, incumbent: leave_round(made.rounds, a_round(model(**BETTER), number=number), incumbent)
    yield made
    made.stop()
    made.client.close()


@pytest.mark.nightly
def test_live_images_decide_and_neither_a_kill_nor_a_rollback_lets_another_version_serve(driven: Driven) -> None:
    """Three rounds of one daemon that is killed once: a start costs seconds, a round does not."""
    begin_with_limits(driven, driven.leave(1, 1), shadow_images=1, shadow_agreement=1.0)
    driven.start()
    sees_other_things_and_is_rejected(driven)
    driven.leave(2, 1)
    is_waited_for_while_everything_else_goes_on(driven)
    is_gone_on_with_after_a_kill_and_promoted_by_a_flip(driven)
    driven.leave(3, 3)
    is_not_promoted_after_a_rollback(driven)
    assert driven.stop() == 0


def begin_with_limits(driven: Driven, folder: RoundFolder, **gate: float) -> None:
    """What a daemon with these settings had begun, before it was restarted with others."""
    other = driven.settings.model_copy(update={"gate": changed(driven.settings.gate, **gate)})
    assert advance_round(driven.registry, folder, Settings.model_validate(other)) == "shadowing"


def sees_other_things_and_is_rejected(driven: Driven) -> None:
    """Version 2."""
    driven.wait_for_shadow(2)
    answered = driven.ask_until(driven.rounds.folder(1).verdict, "the verdict")
    verdict = driven.wait_for_end(1)
    assert verdict.decision == "rejected"
    assert "veto: in the shadow" in verdict.reason and "100.0% needed" in verdict.reason
    failures = 'mfmd_gate_failures_total{gate="shadow_agreement"}'
    driven.wait_for(lambda: driven.sample("daemon", failures) or None, "a count", 30)
    assert (answered, driven.ask()) == ({1}, 1)


def is_waited_for_while_everything_else_goes_on(driven: Driven) -> None:
    """Version 3."""
    driven.wait_for_shadow(3)
    assert driven.rounds.folder(2).verdict() is None, "nothing is promoted before anybody has asked"
    assert {driven.ask() for _ in range(FEW)} == {1}
    image = driven.config.parent / "new.png"
    Image.open(io.BytesIO(image_bytes())).save(image)
    driven.drop([image])
    driven.wait_until_committed(1, 30)
    refused = driven.post("/v1/rounds")
    assert (refused.status_code, "round 2 is running" in refused.text) == (409, True)
    running = driven.client.get(f"{driven.url('daemon')}/v1/status").json()["round"]
    assert (running["round"], running["progress"]["phase"], running["progress"]["steps"]) == (2, "shadow", WANTED)


def is_gone_on_with_after_a_kill_and_promoted_by_a_flip(driven: Driven) -> None:
    """Version 3, still."""
    driven.wait_for(lambda: driven.compared(3, 1) == FEW or None, "the first images are on the disk", 30)
    assert driven.process is not None
    driven.process.kill()
    driven.process.wait()
    assert driven.serving() == 1
    for name in ("daemon", "serve"):
        driven.layout.run_file(name).unlink()
    driven.start()
    driven.wait_for_shadow(3)
    assert driven.rounds.folder(2).verdict() is None, "nothing is promoted without evidence"
    assert driven.compared(3, 1) == FEW

    assert driven.ask_until(lambda: driven.served_version() == 3, "the candidate serves") <= {1, 3}
    verdict = driven.wait_for_end(2)
    assert (verdict.decision, verdict.version) == ("accepted", 3)
    assert len(list((driven.layout.shadow / "000003").iterdir())) == 2, "each plane had an address of its own"
    assert driven.sample("serve", 'mfmd_swap_seconds_count{phase="load"}') == 2, "version 1, and the candidate once"
    assert driven.ask() == 3
    numbers = {check.name: check.value for check in verdict.checks}
    assert numbers["shadow_images"] >= WANTED
    score = 'mfmd_gate_score{gate="shadow_agreement"}'
    assert driven.sample("daemon", score) == numbers["shadow_agreement"] > 0
    assert driven.sample("daemon", "mfmd_round_shadow_images") > 0
    assert f"of the pixels of {numbers['shadow_images']:.0f} live images as served" in driven.page()
    shown = driven.run_command("checkpoints", "show", "3", "--json")
    assert '"shadow_agreement"' in shown.stdout and '"agreement":' in shown.stdout


def is_not_promoted_after_a_rollback(driven: Driven) -> None:
    """Version 4, which waits beside version 3."""
    driven.wait_for_shadow(4)
    answer = driven.post("/v1/rollback", reason="poles vanish", expected=3)
    assert (answer.status_code, answer.json()["version"]) == (200, 1)
    verdict = driven.wait_for_end(3)
    assert (verdict.decision, verdict.version) == ("inconclusive", None)
    assert "serving changed during the shadow: version 1 serves, the shadow began beside version 3" in verdict.reason
    driven.wait_until_serving(1, 30)
    assert (driven.serving(), driven.ask()) == (1, 1)
    history = [(item.event, item.version, item.by) for item in driven.registry.history()[-7:]]
    assert history == [
        ("promoted", 3, "gate"),
        ("shadow_ended", 3, "gate"),
        ("added", 4, "gate"),
        ("shadow_started", 4, "gate"),
        ("rolled_back", 1, "operator"),
        ("inconclusive", 4, "gate"),
        ("shadow_ended", 4, "gate"),
    ]
    page = driven.page()
    assert "poles vanish" in page and "version 4 (never served, inconclusive)" in page


def test_a_candidate_that_no_plane_can_load_is_waited_for_until_its_time_is_over(
    tmp_path: Path, a_round: Any, model: Any
) -> None:
    world = World(tmp_path)
    world.add(1, **LIGHT)
    settings = world.settings(shadow_fraction=1.0)
    gate = settings.gate.model_copy(update={"shadow_images": WANTED})
    settings = settings.model_copy(update={"gate": gate})
    folder = leave_round(RoundStore(world.layout.rounds), a_round(model(**BETTER), number=1))
    assert advance_round(world.registry, folder, settings) == "shadowing"
    world.corrupt(2)
    with running(settings) as served:
        served.wait_for(1)
        wait_until(lambda: served.metric("mfmd_shadow_failed_total") == 1, "the candidate is refused")
        assert served.segment(image_bytes()).headers["X-Checkpoint-Version"] == "1"
        assert advance_round(world.registry, folder, settings, waited=599.0) == "shadowing"
        assert advance_round(world.registry, folder, settings, waited=600.0) == "rejected"
        verdict = folder.verdict()
    assert verdict is not None and verdict.decision == "inconclusive"
    assert "too few images in 600 s of shadow: 0 of 3 live images compared" in verdict.reason
    assert (world.registry.ref("shadow"), world.registry.serving().version) == (None, 1)
