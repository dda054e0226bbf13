"""The observer: every committed frame gets its numbers once, newest first, from the version that serves."""

import io
import threading
import time

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from adapters.checkpoints.checkpoint import load_version, make_manifest, save_weights
from adapters.inference.segment import segment_image
from adapters.networks.build import build_network
from adapters.networks.network import normalise
from adapters.scoring.observation import observe_frame
from daemon.gate.frame_facts import facts_of
from daemon.looks import answers
from daemon.observer import Observer, _wait
from storage.buffer.files import ARRAY
from storage.buffer.observations import Observations
from storage.canary.records import CanaryState
from storage.durable.record import read_record
from storage.errors import CorruptCheckpoint
from storage.gate.comparisons import ComparisonStore
from storage.looks.store import Look, LookStore
from tests.sections import changed


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def add_network(registry, make_settings, tmp_path):
    """Register a real network and let it serve."""

    def add(seed: int, parent: int | None = None) -> int:
        settings = make_settings()
        torch.manual_seed(seed)
        save_weights(build_network(settings.network.architecture(), len(settings.classes)), tmp_path / "w.safetensors")
        manifest = make_manifest(settings, origin="pretrain").model_copy(update={"parent": parent})
        version = registry.add(tmp_path / "w.safetensors", manifest, by="test").version
        registry.promote(version, by="test", reason="test")
        return version

    return add


@pytest.fixture
def world(bench, drop, write_image):
    made = bench()
    for number in range(3):
        write_image(drop / f"{number}.png", number)
    made.until(lambda: made.counts.frames == 3)
    return made


@pytest.fixture
def observer(world):
    made = Observer(world.settings)
    yield made
    made.close()


def _all(layout):
    with Observations.open(layout.observations, writable=False) as observations:
        return observations.get(observations.observed())


def test_frames_get_their_numbers_and_keep_the_released_encoder(
    world, observer, layout, add_network, drop, write_image
):
    go = threading.Event()
    assert not observer.step(go), "no version yet"
    first = add_network(0)
    assert observer.step(go)
    assert not observer.step(go), "all looked at"
    second = add_network(1, parent=first)
    write_image(drop / "late.png", 9)
    world.until(lambda: world.counts.frames == 4)
    observer.step(go)
    seen = _all(layout)
    assert [(item.frame, item.version, item.released) for item in seen] == [
        (1, first, first), (2, first, first), (3, first, first), (4, second, first),
    ]  # fmt: skip
    for item in seen:
        assert item.area.sum() == pytest.approx(1.0)
        assert item.area.shape == (len(world.settings.classes),)
        assert 0 < item.entropy <= np.log(len(item.area)) + 1e-5
        assert 0 < item.confidence <= 1
        assert np.isfinite(item.embedding).all()
    assert len({item.embedding.tobytes() for item in seen}) == 4
    assert set(observer._networks) == {first, second}


def test_the_facts_of_all_new_frames_are_there_before_one_is_observed(
    world, observer, layout, add_network, monkeypatch
):
    add_network(0)
    monkeypatch.setattr("daemon.observer.GROUP", 1)
    observer.step(threading.Event())
    with Observations.open(layout.observations, writable=False) as observations:
        found, seen = observations.facts([1, 2, 3]), observations.observed()
    assert seen == {3} and found.keys() == {1, 2, 3}
    record = world.buffer.records()[1]
    pixels = world.buffer.read(record)[: record.valid_height, : record.valid_width]
    assert np.array_equal(found[2], facts_of(pixels).numbers())


def test_frames_that_leave_are_forgotten(world, observer, layout, add_network):
    add_network(0)
    observer.step(threading.Event())
    with world.buffer.catalog.transaction() as connection:
        connection.execute("DELETE FROM frames WHERE id = 1")
    observer.step(threading.Event())
    assert [item.frame for item in _all(layout)] == [2, 3]
    with Observations.open(layout.observations, writable=False) as observations:
        assert observations.with_facts() == {2, 3}


def test_a_corrupt_frame_is_passed_over(world, observer, layout, add_network):
    add_network(0)
    with world.buffer.catalog.transaction() as connection:
        connection.execute("UPDATE frames SET crc32 = 1 WHERE id = 2")
    observer.step(threading.Event())
    assert not observer.step(threading.Event())
    assert [item.frame for item in _all(layout)] == [1, 3]


def test_a_comparison_is_answered_before_frames_are_observed(world, observer, layout, add_network):
    first = add_network(0)
    second = add_network(1, parent=first)
    store = ComparisonStore(layout.comparisons)
    request = store.ask("recall", [second, first, second], [1, 2, 3, 99])
    assert observer.step(threading.Event())
    scores = store.scores(request.number)
    assert scores.status == "completed" and scores.frames == (1, 2, 3)
    assert [model.version for model in scores.models] == [second, first, second]
    assert scores.models[0] == scores.models[2] != scores.models[1]
    assert scores.models[0].agreement == [1.0] * 3
    assert all(0 <= share < 1 for share in scores.models[1].agreement)
    assert sum(scores.reference_marginal) == pytest.approx(1.0)
    observer.step(threading.Event())
    assert len(_all(layout)) == 3


def test_canary_images_are_scored_when_asked_for_and_never_count_as_frames(world, layout, add_network, drop, tmp_path):
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    (tmp_path / "images" / "a.png").write_bytes((drop / "1.png").read_bytes())
    with Image.open(drop / "1.png") as image:
        Image.fromarray(np.eye(image.height, image.width, dtype=np.uint8)).save(tmp_path / "labels" / "a.png")
    canary = {"images": tmp_path / "images", "labels": tmp_path / "labels"}
    observer = Observer(changed(world.settings, canary=canary))
    first = add_network(0)
    versions, store = (add_network(1, parent=first), first), ComparisonStore(layout.comparisons)

    def scores(frames: list[int], *, asked: bool = True):
        request = store.ask("probation", versions, frames, canary=asked)
        assert observer.step(threading.Event())
        return store.scores(request.number)

    found = scores([1, 2, 3])
    assert found.status == "completed" and len(found.frames) == 2, "its own frame is left out"
    new, old = found.canary
    assert len(new.gram) == len(old.canary.tp) == len(found.canary_styles) == 1 and new.canary != old.canary
    frame = next(item for item in (1, 2, 3) if item not in found.frames)
    while observer.step(threading.Event()):
        pass
    style = next(item.style for item in _all(layout) if item.frame == frame)
    np.testing.assert_allclose(found.canary_styles[0], style, rtol=1e-5)
    assert sum(new.canary.tp[0]) + sum(new.canary.fn[0]) > 0
    assert read_record(layout.canary / "state.json", CanaryState).images == 1
    assert scores([2, 3], asked=False).canary == ()
    alone = scores([])
    assert alone.status == "completed" and alone.canary == found.canary and alone.frames == ()
    (tmp_path / "labels" / "a.png").write_bytes(b"damaged")
    refused = scores([2, 3])
    assert refused.status == "completed" and refused.canary == () and refused.frames == (2, 3)
    observer.close()


def test_a_comparison_with_a_missing_version_is_answered_with_the_reason(world, observer, layout, add_network):
    store = ComparisonStore(layout.comparisons)
    request = store.ask("recall", [add_network(0), 77], [1])
    observer.step(threading.Event())
    scores = store.scores(request.number)
    assert scores.status == "failed" and "77" in scores.reason


def test_a_corrupt_version_is_an_error_that_the_loop_waits_out(world, observer, registry, add_network):
    version = add_network(0)
    registry.weights_path(version).write_bytes(b"rubbish")
    with pytest.raises(CorruptCheckpoint):
        observer.step(threading.Event())


def test_it_stops_between_frames(world, observer, layout, add_network):
    add_network(0)
    stop = threading.Event()
    stop.set()
    observer.step(stop)
    assert _all(layout) == []


def test_the_numbers_are_those_of_the_definition(make_settings):
    settings = make_settings()
    torch.manual_seed(3)
    serving, released = (build_network(settings.network.architecture(), 5).eval() for _ in range(2))
    pixels = np.random.default_rng(0).integers(0, 256, (40, 64, 3), np.uint8)
    found = observe_frame(serving, released, pixels)
    with torch.inference_mode():
        images = normalise(torch.from_numpy(pixels)[None])
        probability = F.softmax(serving(images), dim=1)[0].double()
        shallowest, *_, deepest = (level[0] for level in released.encode(images))
    entropy = -(probability * probability.clamp(min=1e-12).log()).sum(0).mean()
    assert found.entropy == pytest.approx(float(entropy), rel=1e-4)
    assert found.confidence == pytest.approx(float(probability.max(0).values.mean()), rel=1e-4)
    area = [float((probability.argmax(0) == k).double().mean()) for k in range(5)]
    assert found.area.tolist() == pytest.approx(area, abs=1e-3)
    np.testing.assert_allclose(found.embedding, deepest.mean(dim=(1, 2)).numpy(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.style, shallowest.flatten(1).var(1, correction=0).log().numpy(), rtol=1e-3)


def test_a_sliver_of_an_image_is_observed_too(make_settings):
    settings = make_settings()
    network = build_network(settings.network.architecture(), 5).eval()
    started = time.monotonic()
    found = observe_frame(network, network, np.zeros((1, 48, 3), np.uint8))
    assert np.isfinite(found.embedding).all() and np.isfinite(found.style).all()
    assert time.monotonic() - started < 30


def test_another_released_model_observes_every_frame_again(world, observer, layout, add_network):
    add_network(0)
    observer.step(threading.Event())
    other = add_network(1)
    observer.step(threading.Event())
    assert [(item.frame, item.released) for item in _all(layout)] == [(1, other), (2, other), (3, other)]


@pytest.fixture
def ask(world, layout, registry):
    """Ask for looks as the page does; return them."""
    store, frames = LookStore(layout.looks), {record.id: record for record in world.buffer.records()}

    def send(number: int, version: int, **changes) -> Look:
        digest = registry.manifest(version).files["model.safetensors"].sha256[:12] if version < 9 else "0" * 12
        facts = {"frame": number, "crc32": frames[number].crc32, "version": version, "digest": digest}
        look = Look(**facts | changes)
        assert store.ask(look)
        return look

    send.found = store.found
    return send


def test_looks_are_answered_with_any_version_and_one_more_network_stays(
    world, observer, ask, registry, add_network, monkeypatch
):
    first = add_network(0)
    second, third = add_network(1, parent=first), add_network(2, parent=first)
    wanted = [ask(frame, version) for frame in (1, 2) for version in (first, second, third)]
    monkeypatch.setattr(answers, "IN_A_ROW", 3)
    observer.step(threading.Event())
    assert sum(ask.found(look) is not None for look in wanted) == 3 and observer.looks.asked()
    observer.step(threading.Event())
    assert not observer.looks.asked()
    assert set(observer._networks) == {first, third} and len(observer.looks._extra) == 1
    for look in wanted:
        network, _ = load_version(registry, look.version, torch.device("cpu"))
        record = world.buffer.records(ids=[look.frame])[0]
        pixels = world.buffer.read(record)[: record.valid_height, : record.valid_width]
        with Image.open(io.BytesIO(ask.found(look))) as image:
            assert image.mode == "L"
            assert np.array_equal(np.array(image), segment_image(network, pixels, pixels.shape[:2]))


def test_comparisons_and_frames_get_their_turn_in_a_flood_of_looks(world, observer, ask, layout, add_network):
    version = add_network(0)
    store = ComparisonStore(layout.comparisons)
    request = store.ask("recall", [version], [1])
    for number in range(10):
        ask(1, version, crc32=number)
    observer.step(threading.Event())
    assert store.scores(request.number) is not None and observer.looks.asked()
    observer.step(threading.Event())
    assert len(_all(layout)) == 2 and observer.looks.asked()


def test_what_cannot_be_looked_at_says_why_and_stops_nothing(world, observer, ask, layout, registry, add_network):
    whole, damaged = add_network(0), add_network(1)
    registry.weights_path(damaged).write_bytes(b"rubbish")
    with world.buffer.catalog.transaction() as connection:
        connection.execute("UPDATE frames SET crc32 = 1 WHERE id = 2")
    states = {
        ask(1, damaged): "version_damaged",
        ask(1, 77): "version_gone",
        ask(1, whole, frame=99): "frame_gone",
        ask(1, whole, crc32=5): "frame_gone",
        ask(2, whole, crc32=1): "frame_damaged",
    }
    with pytest.raises(CorruptCheckpoint):  # it serves
        observer.step(threading.Event())
    observer.looks.step()
    assert {look: ask.found(look).state for look in states} == states
    assert all(ask.found(look).message for look in states)
    look = ask(1, whole)
    observer.looks.step()
    assert isinstance(ask.found(look), bytes), "a damaged serving version stops no look at another"


def test_a_buffer_that_cannot_be_opened_and_a_disk_that_takes_no_answer(world, observer, ask, layout, add_network):
    version = add_network(0)
    look = ask(1, version)
    (layout.frames_zarr / ARRAY / "zarr.json").write_text("{")
    observer.looks.step()
    assert ask.found(look).state == "buffer_unusable"
    other = ask(3, version)
    (layout.looks / f"{other.name}.json").mkdir()
    observer.looks.step()
    assert not observer.looks.asked(), "it pauses"
    ask(2, version)
    assert not observer.looks.asked()


def test_who_waits_for_a_look_ends_a_pause(monkeypatch) -> None:
    monkeypatch.setattr("daemon.observer.LOOK_SECONDS", 0.01)
    asked, began = iter([False, False, True]), time.monotonic()
    _wait(threading.Event(), 60.0, lambda: next(asked))
    assert time.monotonic() - began < 30
