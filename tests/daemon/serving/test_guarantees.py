"""What the inference plane promises about swaps, one test for each promise; details are in the tests beside this."""

import threading
from collections.abc import Callable
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch

from adapters.inference.forward import ServedForward
from adapters.inference.segment import segment_image
from daemon.serving.batcher import Fitted
from daemon.serving.plane import InferencePlane
from storage.media.images import fit_frame
from storage.registry.registry import CheckpointRegistry
from tests.daemon.serving.serving_world import (
    HEIGHT,
    WIDTH,
    Served,
    World,
    image_bytes,
    mask_of,
    picture,
    running,
    served_network,
)
from tests.daemon.serving.swap_storm import weather

SIZES = [(64, 96), (64, 64), (24, 96)]


def look(plane: InferencePlane, now: float = 0.0) -> int | None:
    """One look at the ref; `now` (seconds) is later than any retry was put off to."""
    plane.follower.poll(now)
    return plane.slots.live.version if plane.slots.live else None


def ask(plane: InferencePlane, *sizes: tuple[int, int]) -> None:
    """Let images of these sizes be served, so that they count as served shapes."""
    with plane.slots.lease() as resident:
        for size in sizes:
            plane.batcher.submit(resident, [Fitted(fit_frame(picture(*size), *resident.input_size), size)])[0].result(
                20
            )


def test_1_a_hundred_swaps_under_load_fail_and_mix_nothing(world: World) -> None:
    load, counts = weather(world, 100)
    assert counts == {"good": 80, "corrupt": 10, "rollback": 10}
    assert load.total >= 100


def only_at(size: tuple[int, int]) -> Callable[[object, object, torch.Tensor], torch.Tensor]:
    """A hook that spoils the outputs for one input size."""

    def spoil(_: object, inputs: tuple[torch.Tensor], logits: torch.Tensor) -> torch.Tensor:
        return logits * float("nan") if tuple(inputs[0].shape[-2:]) == size else logits

    return spoil  # type: ignore[return-value]


@pytest.mark.parametrize("bad", [(64, 96), (64, 64), (32, 96)])
def test_2_a_version_serves_only_after_a_finite_warm_up_at_every_served_shape(
    world: World, plane: InferencePlane, bad: tuple[int, int]
) -> None:
    world.add(1)
    look(plane)
    reused = plane.slots.live
    assert reused is not None
    world.add(2)
    assert look(plane) == 2
    ask(plane, *SIZES)
    handle = reused.forward.register_forward_hook(only_at(bad))  # type: ignore[arg-type]
    world.add(3)  # goes into the network of version 1
    assert look(plane) == 2
    failure = plane.follower.failure
    assert failure is not None and failure.code == "checkpoint_corrupt" and "not finite" in failure.reason
    handle.remove()
    assert look(plane, now=60.0) == 3


def test_2_a_resident_version_is_warmed_up_at_shapes_that_came_after_it(world: World, plane: InferencePlane) -> None:
    world.add(1)
    look(plane)
    first = plane.slots.live
    world.add(2)
    assert look(plane) == 2 and first is not None
    ask(plane, *SIZES)
    shapes: list[tuple[int, ...]] = []
    first.forward.network.register_forward_pre_hook(lambda _, inputs: shapes.append(tuple(inputs[0].shape[-2:])))
    world.registry.roll_back(to=1, by="operator", reason="")
    assert look(plane) == 1
    assert sorted(shapes) == [(32, 96), (64, 64)], "the full size was warmed up before, the others were not"


def test_2_the_plane_is_ready_only_after_hashes_and_a_pass_and_alive_before(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    probes: list[tuple[str, int, int]] = []
    with running(world.settings(follow_seconds=600)) as served:  # from its first look on, the test looks

        def watched(step: str, real: Callable[..., object]) -> Callable[..., object]:
            def call(*arguments: object, **more: object) -> object:
                done = real(*arguments, **more)
                alive, ready = (served.client.get(path).status_code for path in ("/healthz", "/readyz"))
                probes.append((step, alive, ready))
                return done

            return call

        monkeypatch.setattr(CheckpointRegistry, "verify", watched("hashes", CheckpointRegistry.verify))
        monkeypatch.setattr(ServedForward, "load", watched("weights", ServedForward.load))
        monkeypatch.setattr(ServedForward, "warm_up", watched("a pass", ServedForward.warm_up))
        world.add(1)
        probes.clear()  # a promotion verifies too
        assert look(served.plane) == 1
        assert probes == [("hashes", 200, 503), ("weights", 200, 503), ("a pass", 200, 503)]
        assert served.client.get("/readyz").status_code == 200


def test_3_a_failure_keeps_the_old_version_counts_and_says_why(world: World) -> None:
    world.add(1)
    with running(world.settings()) as served:
        served.wait_for(1)
        bad = world.add(2, promote=False)
        world.corrupt(bad)
        world.point_at(bad)
        failure = served.wait_for_failure(bad)
        status = served.client.get("/v1/serving").json()
        assert (status["version"], status["wanted"], status["ready"]) == (1, bad, True)
        assert failure["code"] == "checkpoint_corrupt" and "SHA-256" in str(failure["reason"])
        assert served.metric("mfmd_swap_total", result="failed") >= 1
        assert served.segment(image_bytes()).headers["X-Checkpoint-Version"] == "1"


def test_3_another_architecture_that_fails_keeps_the_old_version(world: World, plane: InferencePlane) -> None:
    world.add(1)
    look(plane)
    other = world.add(2, promote=False, name="deeplabv2", encoder="resnet_tiny")
    world.corrupt(other)
    world.point_at(other)
    assert look(plane) == 1
    good = world.add(3, name="deeplabv2", encoder="resnet_tiny")
    assert look(plane) == good
    assert plane.slots.versions == (good, 1), "the version before stays for a rollback, whatever its architecture"
    world.registry.roll_back(to=1, by="operator", reason="")
    assert look(plane) == 1


def test_4_a_rollback_to_the_resident_version_opens_no_weights(
    world: World, plane: InferencePlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.add(1)
    look(plane)
    world.add(2)
    assert look(plane) == 2
    world.registry.roll_back(to=None, by="operator", reason="")
    opened: list[str] = []
    for version in (1, 2):
        world.registry.weights_path(version).unlink()
    plain = Path.open

    def noted(path: Path, *args: object, **kwargs: object) -> object:
        opened.append(path.name)
        return plain(path, *args, **kwargs)  # type: ignore[call-overload]

    monkeypatch.setattr(Path, "open", noted)
    assert look(plane) == 1
    assert not [name for name in opened if name.endswith(".safetensors")]
    assert plane.metrics.registry.get_sample_value("mfmd_serving_rollbacks_total", {"weights": "resident"}) == 1
    assert plane.metrics.registry.get_sample_value("mfmd_swap_seconds_count", {"phase": "load"}) == 2
    ask(plane, (HEIGHT, WIDTH))


def test_5_a_request_in_flight_finishes_on_the_version_it_began_with_and_names_it(world: World) -> None:
    world.add(1)
    with running(world.settings()) as served:
        served.wait_for(1)
        gate, reached = threading.Event(), threading.Event()
        live = served.plane.slots.live
        assert live is not None

        def hold(*_: object) -> None:
            reached.set()
            assert gate.wait(30)

        handle = live.forward.network.register_forward_pre_hook(hold)
        answers: list[httpx.Response] = []
        asking = threading.Thread(target=lambda: answers.append(served.segment(image_bytes())))
        asking.start()
        assert reached.wait(20)
        handle.remove()
        world.add(2)
        served.wait_for(2)
        gate.set()
        asking.join(20)
        later = served.segment(image_bytes())
    assert [answer.headers["X-Checkpoint-Version"] for answer in (*answers, later)] == ["1", "2"]
    for seed, answer in ((1, answers[0]), (2, later)):
        expected = segment_image(served_network(seed), picture(), (HEIGHT, WIDTH))
        np.testing.assert_array_equal(mask_of(answer), expected)


@pytest.mark.parametrize(
    ("method", "path", "code"),
    [
        ("GET", "/healthz", 200),
        ("GET", "/v1/serving", 200),
        ("GET", "/v1/classes", 200),
        ("GET", "/nowhere", 404),
        ("POST", "/v1/segment", 400),
        ("GET", "/v2/health/ready", 200),
    ],
)
def test_5_every_answer_names_its_version(shared: Served, method: str, path: str, code: int) -> None:
    answer = shared.client.request(method, path)
    assert answer.status_code == code
    assert answer.headers["X-Checkpoint-Version"] == "1" and len(answer.headers["X-Checkpoint-Hash"]) == 12
