"""Many swaps under constant load: one in ten to a corrupt candidate, one in ten a rollback; who failed, who mixed.

`make test` runs a hundred (`test_guarantees.py`), `make soak` a thousand (`swap_soak.py`).
"""

import threading
from dataclasses import dataclass, field

import httpx

from adapters.inference.segment import segment_image
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

VERSIONS = 4
"""Good versions that take turns."""


@dataclass
class Load:
    """Clients that ask until told to stop; answers are checked as they come, so that nothing piles up."""

    address: httpx.URL
    expected: dict[int, bytes]
    """Right labels of the picture, by version."""
    stop: threading.Event = field(default_factory=threading.Event)
    answers: dict[int, int] = field(default_factory=dict)
    """Right answers, by version."""
    failed: list[str] = field(default_factory=list)
    mixed: list[str] = field(default_factory=list)
    guard: threading.Lock = field(default_factory=threading.Lock)

    @property
    def total(self) -> int:
        """Right answers so far."""
        return sum(self.answers.values())

    def ask(self) -> None:
        """One client."""
        content = image_bytes()
        with httpx.Client(base_url=self.address, timeout=30.0) as client:
            while not self.stop.is_set():
                self.check(client.post("/v1/segment", content=content))

    def check(self, response: httpx.Response) -> None:
        """Sort one answer."""
        version = response.headers.get("X-Checkpoint-Version", "none")
        with self.guard:
            if response.status_code != 200:
                self.failed.append(f"{response.status_code} {response.text}")
            elif self.expected.get(int(version)) != mask_of(response).tobytes():
                self.mixed.append(f"not the answer of version {version}")
            else:
                self.answers[int(version)] = self.answers.get(int(version), 0) + 1


def weather(world: World, swaps: int) -> tuple[Load, dict[str, int]]:
    """A storm on a plane of its own; AssertionError when anything failed or mixed, or the plane counted otherwise."""
    with running(world.settings(max_batch_images=2, max_delay_ms=1.0)) as served:
        load, counts = storm(world, served, swaps)
        assert load.failed == [] and load.mixed == [], (load.failed[:3], load.mixed[:3])
        assert served.metric("mfmd_swap_total", result="failed") == counts["corrupt"]
        assert served.metric("mfmd_swap_total", result="ok") == 1 + counts["good"] + counts["rollback"]
        served.assert_idle()
    corrupt, rollback = (swaps + 6) // 10, (swaps + 2) // 10
    assert counts == {"good": swaps - corrupt - rollback, "corrupt": corrupt, "rollback": rollback}
    assert set(load.answers) == set(range(1, VERSIONS + 1)) and load.total >= swaps
    return load, counts


def storm(world: World, served: Served, swaps: int) -> tuple[Load, dict[str, int]]:
    """Run `swaps` swaps under load on a world without versions; returns the load and the count of each kind."""
    good = [world.add(seed, promote=seed == 1) for seed in range(1, VERSIONS + 1)]
    corrupt = world.add(VERSIONS + 1, promote=False)
    served.wait_for(good[0])
    right = {version: segment_image(world.networks[version], picture(), (HEIGHT, WIDTH)).tobytes() for version in good}
    assert len(set(right.values())) == len(good), "versions must differ for mixing to show"
    world.corrupt(corrupt)
    load = Load(served.client.base_url, right)
    clients = [threading.Thread(target=load.ask) for _ in range(2)]
    for client in clients:
        client.start()
    try:
        return load, _swap(world, served, load, swaps, corrupt)
    finally:
        load.stop.set()
        for client in clients:
            client.join(30)


def _swap(world: World, served: Served, load: Load, swaps: int, corrupt: int) -> dict[str, int]:
    counts, now, before, upcoming = {"good": 0, "corrupt": 0, "rollback": 0}, 1, 0, 2
    for turn in range(swaps):
        kind = {3: "corrupt", 7: "rollback"}.get(turn % 10, "good")
        counts[kind] += 1
        if kind == "corrupt":
            failures = served.plane.follower.failures
            world.point_at(corrupt)
            wait_until(lambda failures=failures: served.plane.follower.failures > failures, "the corrupt one fails")
            world.point_at(now)
            wait_until(lambda now=now: served.plane.follower.wanted.version == now, "the ref is seen")
        else:
            target = before if kind == "rollback" else upcoming
            if kind == "rollback":
                world.registry.roll_back(to=target, by="operator", reason="storm")
            else:
                world.registry.promote(target, by="gate", reason="storm")
                upcoming = target % VERSIONS + 1
            served.wait_for(target)
            now, before = target, now
            upcoming = now % VERSIONS + 1 if upcoming == now else upcoming
        seen = load.total
        wait_until(lambda seen=seen: load.total > seen or bool(load.failed + load.mixed), "answers go on")
    return counts
