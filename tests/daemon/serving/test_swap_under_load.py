"""Continuous requests through good swaps, corrupt candidates and rollbacks: none fails, none mixes two versions."""

import threading
import time
from dataclasses import dataclass, field

import httpx
import numpy as np

from adapters.inference.segment import segment_image
from storage.durable import write_record
from storage.registry.manifest import Ref
from tests.daemon.serving.serving_world import (
    HEIGHT,
    WIDTH,
    Served,
    World,
    image_bytes,
    mask_of,
    picture,
    running,
    wait_until,
)

SIZES = [(HEIGHT, WIDTH), (48, 48), (HEIGHT, WIDTH)]


@dataclass
class Traffic:
    """Clients that ask until told to stop, and what they were told."""

    address: httpx.URL
    stop: threading.Event = field(default_factory=threading.Event)
    answers: list[tuple[int, int, np.ndarray]] = field(default_factory=list)
    """(picture, version, labels)."""
    failures: list[str] = field(default_factory=list)

    def segment(self, seed: int) -> None:
        """One client of /v1/segment."""
        content = image_bytes(*SIZES[seed], seed=seed)
        with httpx.Client(base_url=self.address, timeout=30.0) as client:
            while not self.stop.is_set():
                response = client.post("/v1/segment", content=content)
                if response.status_code != 200:
                    self.failures.append(f"{response.status_code} {response.text}")
                    continue
                self.answers.append((seed, int(response.headers["X-Checkpoint-Version"]), mask_of(response)))

    def infer(self) -> None:
        """One client of the Open Inference Protocol with more images than fit one batch."""
        images = np.stack([picture(seed=0)] * 3)
        tensor = {"name": "images", "shape": list(images.shape), "datatype": "UINT8", "data": images.ravel().tolist()}
        with httpx.Client(base_url=self.address, timeout=30.0) as client:
            while not self.stop.is_set():
                response = client.post("/v2/models/segmentation/infer", json={"inputs": [tensor]})
                if response.status_code != 200:
                    self.failures.append(f"{response.status_code} {response.text}")
                    continue
                answer = response.json()
                labels = np.array(answer["outputs"][0]["data"], np.uint8).reshape(3, HEIGHT, WIDTH)
                assert answer["model_version"] == response.headers["X-Checkpoint-Version"]
                self.answers.extend((0, int(answer["model_version"]), one) for one in labels)

    def run(self) -> list[threading.Thread]:
        """Start three clients."""
        threads = [
            threading.Thread(target=self.segment, args=(0,)),
            threading.Thread(target=self.segment, args=(1,)),
            threading.Thread(target=self.infer),
        ]
        for thread in threads:
            thread.start()
        return threads

    def wait_for_more(self, answers: int = 8) -> None:
        """Let the clients get some more answers."""
        before = len(self.answers)
        wait_until(lambda: len(self.answers) >= before + answers or bool(self.failures), "traffic goes on")


def swaps(world: World, served: Served, traffic: Traffic) -> list[int]:
    """Good swap, corrupt candidate, rollback of it, good swap, rollback; returns the versions that served."""
    second = world.add(2)
    served.wait_for(second)
    traffic.wait_for_more()
    corrupt = world.add(3, promote=False)
    world.corrupt(corrupt)
    write_record(
        world.registry.root / "refs" / "serving", Ref(version=corrupt, since=time.time(), by="test", reason="")
    )
    served.wait_for_failure(corrupt)
    traffic.wait_for_more()
    world.registry.roll_back(to=second, by="operator", reason="corrupt")
    fourth = world.add(4)
    served.wait_for(fourth)
    traffic.wait_for_more()
    world.registry.roll_back(to=second, by="operator", reason="worse")
    served.wait_for(second)
    traffic.wait_for_more()
    return [1, second, fourth]


def test_no_request_fails_or_mixes_versions(world: World) -> None:
    world.add(1)
    with running(world.settings(max_batch_images=2, max_delay_ms=1.0)) as served:
        served.wait_for(1)
        traffic = Traffic(served.client.base_url)
        threads = traffic.run()
        try:
            traffic.wait_for_more()
            versions = swaps(world, served, traffic)
        finally:
            traffic.stop.set()
            for thread in threads:
                thread.join(30)
        assert served.metric("mfmd_swap_total", result="failed") == 1
        assert served.metric("mfmd_serving_rollbacks_total", weights="resident") == 1
    assert traffic.failures == []
    assert {version for _, version, _ in traffic.answers} == set(versions), "every good version answered, no other"
    expected = {
        (seed, version): segment_image(world.networks[version], picture(*SIZES[seed], seed=seed), (HEIGHT, WIDTH))
        for seed in (0, 1)
        for version in versions
    }
    assert len({expected[0, version].tobytes() for version in versions}) == len(versions), "the versions differ"
    for seed, version, labels in traffic.answers:
        np.testing.assert_array_equal(labels, expected[seed, version], f"picture {seed} is not what {version} gives")


def test_requests_in_flight_finish_on_the_version_they_began_with(world: World) -> None:
    first = world.add(1)
    with running(world.settings()) as served:
        served.wait_for(first)
        gate, reached = threading.Event(), threading.Event()

        def hold(*_: object) -> None:
            reached.set()
            assert gate.wait(30)

        live = served.plane.slots.live
        assert live is not None
        handle = live.forward.network.register_forward_pre_hook(hold)
        answers: list[httpx.Response] = []
        asking = threading.Thread(target=lambda: answers.append(served.segment(image_bytes())))
        asking.start()
        assert reached.wait(20)
        handle.remove()
        second = world.add(2)
        served.wait_for(second)
        third = world.add(3)  # wants the place of version 1, which is still at work
        wait_until(lambda: served.plane.slots.versions == (second,), "version 1 is taken out of its place")
        held = world.networks[first].network.state_dict()
        assert all(bool((held[name] == value).all()) for name, value in live.forward.network.state_dict().items())
        gate.set()
        asking.join(20)
        served.wait_for(third)
    assert answers[0].status_code == 200 and answers[0].headers["X-Checkpoint-Version"] == str(first)
    np.testing.assert_array_equal(mask_of(answers[0]), segment_image(world.networks[first], picture(), (HEIGHT, WIDTH)))
