"""A whole daemon with its inference plane, asked over HTTP: live answers decide whether a candidate serves."""

import io
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from PIL import Image

from adapters.checkpoints.checkpoint import save_weights
from daemon.demo.driving import DrivenDaemon
from daemon.promotion import judge
from storage.rounds import RoundFolder, RoundStore
from storage.shadow_record import ShadowRecords
from tests.daemon.gate.round_state import BETTER
from tests.daemon.serving.serving_world import World, image_bytes, running, tiny_network, wait_until

WANTED = 6


class Driven(DrivenDaemon):
    """A daemon whose first round has just ended: its candidate is accepted on its scores."""

    client: httpx.Client

    @property
    def folder(self) -> RoundFolder:
        """The round."""
        return self.rounds.folder(1)

    def ask(self, seed: int = 0) -> int:
        """A live request; the version that answered."""
        answer = self.client.post(f"{self.url('serve')}/v1/segment", content=image_bytes(seed=seed))
        assert answer.status_code == 200, answer.text
        return int(answer.headers["X-Checkpoint-Version"])

    def sample(self, plane: str, name: str) -> float:
        """A sample of a plane's metrics; 0 without it."""
        lines = self.client.get(f"{self.url(plane)}/metrics").text.splitlines()
        return next((float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(f"{name} ")), 0.0)

    def compared(self) -> int:
        """Images that the planes' files tell of."""
        record = ShadowRecords(self.layout.shadow).total(2, 1)
        return record.images if record else 0

    def wait_for_shadow(self) -> None:
        """Until the plane runs the candidate beside version 1."""
        self.wait_until_serving(1, 60)
        self.wait_for(lambda: self.sample("serve", "mfmd_shadow_version") == 2 or None, "the candidate runs", 60)

    def ask_until(self, done: Callable[[], Any], what: str) -> set[int]:
        """Ask until `done`; the versions that answered."""
        answered: set[int] = set()

        def asked() -> bool | None:
            answered.add(self.ask(seed=int(time.monotonic() * 1000) % 100))
            return True if done() else None

        self.wait_for(asked, what, 60)
        return answered


def leave_round(rounds: RoundStore, judged: Any) -> RoundFolder:
    """A round that has ended and was not judged yet."""
    folder = rounds.create(judged.spec)
    save_weights(tiny_network(2), folder.candidate)
    folder.write_scores(judged.scores)
    return folder


@pytest.fixture
def drive(tmp_path: Path, a_round: Any, model: Any) -> Iterator[Callable[..., Driven]]:
    """Makes it; `gate` are settings."""
    made: list[Driven] = []
    world = World(tmp_path)

    def make(**gate: Any) -> Driven:
        world.add(1)
        settings = world.settings(shadow_fraction=1.0, follow_seconds=0.1).model_dump(mode="json", exclude_none=True)
        settings |= {
            "gate": {"shadow_images": WANTED, "shadow_seconds": 300.0, **gate},
            "control": {"port": 0},
            "observe": {"enabled": False},
            "schedule": {"enabled": False, "min_frames": 1},
        }
        config = tmp_path / "mfmd.yaml"
        config.write_text(yaml.safe_dump(settings))
        driven = Driven(config)
        leave_round(driven.rounds, a_round(model(**BETTER), number=1))
        made.append(driven)
        driven.client = httpx.Client(timeout=30.0)
        driven.start()
        return driven

    yield make
    for driven in made:
        driven.stop()
        driven.client.close()


@pytest.mark.slow
def test_live_images_promote_a_candidate_by_a_flip(drive: Callable[..., Driven]) -> None:
    driven = drive(shadow_agreement=0.0)
    driven.wait_for_shadow()
    assert driven.folder.verdict() is None, "nothing is promoted before anybody has asked"
    image = driven.config.parent / "new.png"
    Image.open(io.BytesIO(image_bytes())).save(image)
    driven.drop([image])
    driven.wait_until_committed(1, 30)
    token = driven.layout.token_file.read_text().strip()
    refused = driven.client.post(f"{driven.url('daemon')}/v1/rounds", headers={"Authorization": f"Bearer {token}"})
    assert (refused.status_code, "round 1 runs" in refused.text) == (409, True)
    running = driven.get("daemon", "/v1/status")["round"]
    assert (running["round"], running["progress"]["phase"], running["progress"]["steps"]) == (1, "shadow", WANTED)

    answered = driven.ask_until(lambda: driven.served_version() == 2, "the candidate serves")
    assert answered <= {1, 2}
    driven.wait_for(lambda: driven.registry.ref("shadow") is None or None, "the shadow's end", 30)
    verdict = driven.folder.verdict()
    assert verdict is not None and (verdict.decision, verdict.version) == ("accepted", 2)
    assert driven.sample("serve", 'mfmd_swap_seconds_count{phase="load"}') == 2, "version 1, and the candidate once"
    assert driven.ask() == 2
    numbers = {check.name: check.value for check in verdict.checks}
    assert numbers["shadow_images"] >= WANTED
    assert driven.sample("daemon", 'mfmd_gate_score{gate="shadow_agreement"}') == numbers["shadow_agreement"] > 0
    assert driven.sample("daemon", "mfmd_round_shadow_images") > 0
    page = driven.client.get(f"{driven.url('daemon')}/").text
    assert f"of the pixels of {numbers['shadow_images']:.0f} live images as served" in page
    shown = driven.run_command("checkpoints", "show", "2", "--json")
    assert '"shadow_agreement"' in shown.stdout and '"agreement":' in shown.stdout
    assert driven.stop() == 0


@pytest.mark.slow
def test_a_candidate_that_sees_other_things_is_rejected(drive: Callable[..., Driven]) -> None:
    driven = drive(shadow_agreement=1.0)
    driven.wait_for_shadow()
    answered = driven.ask_until(driven.folder.verdict, "the verdict")
    verdict = driven.folder.verdict()
    assert verdict is not None and verdict.decision == "rejected"
    assert "veto: in the shadow" in verdict.reason and "100.0% needed" in verdict.reason
    driven.wait_for(lambda: driven.registry.ref("shadow") is None or None, "the shadow's end", 30)
    driven.wait_for(
        lambda: driven.sample("daemon", 'mfmd_gate_failures_total{gate="shadow_agreement"}') or None, "a count", 30
    )
    assert (answered, driven.ask()) == ({1}, 1)


@pytest.mark.slow
def test_a_daemon_killed_in_the_middle_goes_on_with_what_was_compared(drive: Callable[..., Driven]) -> None:
    driven = drive(shadow_agreement=0.0, shadow_images=WANTED + 20)
    driven.wait_for_shadow()
    driven.ask_until(lambda: driven.compared() > 0, "the first images are on the disk")
    before = driven.compared()
    assert driven.pid is not None
    os.kill(driven.pid, signal.SIGKILL)
    assert driven._process is not None
    driven._process.wait()
    assert driven.registry.ref("serving").version == 1
    for name in ("daemon", "serve"):
        driven.layout.run_file(name).unlink()
    driven.start()
    driven.wait_for_shadow()
    assert driven.folder.verdict() is None, "nothing is promoted without evidence"
    assert driven.compared() >= before
    driven.ask_until(lambda: driven.served_version() == 2, "the candidate serves")
    verdict = driven.folder.verdict()
    assert verdict is not None and verdict.version == 2
    assert len(list((driven.layout.shadow / "000002").iterdir())) == 2, "each plane had an address of its own"


def test_a_candidate_that_no_plane_can_load_is_waited_for_until_its_time_is_over(
    tmp_path: Path, a_round: Any, model: Any
) -> None:
    world = World(tmp_path)
    world.add(1)
    settings = world.settings(shadow_fraction=1.0)
    gate = settings.gate.model_copy(update={"shadow_images": WANTED})
    settings = settings.model_copy(update={"gate": gate})
    folder = leave_round(RoundStore(world.layout.rounds), a_round(model(**BETTER), number=1))
    assert judge(world.registry, folder, settings) is None
    world.corrupt(2)
    with running(settings) as served:
        served.wait_for(1)
        wait_until(lambda: served.metric("mfmd_shadow_failed_total") == 1, "the candidate is refused")
        assert served.segment(image_bytes()).headers["X-Checkpoint-Version"] == "1"
        assert judge(world.registry, folder, settings, waited=599.0) is None
        verdict = judge(world.registry, folder, settings, waited=600.0)
    assert verdict is not None and verdict.decision == "inconclusive"
    assert "too little seen in 600 s of shadow: 0 of 6 live images compared" in verdict.reason
    assert (world.registry.ref("shadow"), world.registry.ref("serving").version) == (None, 1)
