"""`score_round` on a real buffer and a real labelled set, with networks whose quality is known, up to the verdict.

The world: three classes that differ in colour. At dusk all colours move. The released network knows the day's
colours; a good candidate knows both, a forgetful one only the dusk's.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from adapters.networks.network import SegmentationNetwork
from adapters.scoring.candidate import ScoredRound, evenly, score_round
from configs.settings import Settings
from daemon.gate.decide import decide
from storage.buffer.catalog_records import FileFact
from storage.buffer.frames import FrameBuffer, NewFrame
from storage.canary.images import CanaryImage
from storage.errors import CorruptCheckpoint
from storage.layout import StateLayout
from storage.media.images import fit_frame
from storage.rounds.records import KnownCondition, ModelScores, RoundConditions, RoundScores, RoundSpec
from storage.rounds.verdict import Verdict
from storage.source.labelled import LabelledSet
from storage.source.labelled_import import import_labelled
from tests.sections import changed

NAMES = ("road", "tree", "sky")
DAY = ((120, 110, 105), (70, 140, 60), (150, 190, 235))
DUSK = tuple(tuple(int(value * 0.55 + add) for value, add in zip(colour, (18, 10, 24), strict=True)) for colour in DAY)
COPIES = 8


class Repeated(nn.Module):
    """Colours at half resolution, several copies of them: dropping channels shifts colours a little."""

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return (nn.functional.avg_pool2d(images, 2, ceil_mode=True).repeat(1, COPIES, 1, 1),)


class NearestColour(nn.Module):
    """Class whose nearest known colour is nearest."""

    def __init__(self, palettes: Sequence[Sequence[tuple[int, ...]]], sharpness: float) -> None:
        super().__init__()
        mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
        self.known = nn.Parameter((torch.tensor(palettes) / 255.0 - mean) / std)  # [palettes, K, 3]
        self.sharpness = sharpness

    def forward(self, features: tuple[Tensor, ...]) -> Tensor:
        height, width = features[0].shape[-2:]
        colours = features[0].view(-1, COPIES, 3, height, width).mean(dim=1)  # [B, 3, h, w]
        gaps = (colours[:, None, None] - self.known[None, :, :, :, None, None]).square().sum(dim=3)
        return -self.sharpness * gaps.amin(dim=1)  # [B, palettes, K, h, w] -> [B, K, h, w]


def knows(*palettes: Sequence[tuple[int, ...]], sharpness: float = 8.0) -> SegmentationNetwork:
    decoder = NearestColour([palettes[0], palettes[-1]], sharpness)
    return SegmentationNetwork(Repeated(), decoder, num_classes=3, feature_channels=(3 * COPIES,))


def scene(seed: int, palette: Sequence[tuple[int, ...]]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """A picture 40x60 with noise, and its labels."""
    rng = np.random.default_rng(seed)
    labels = np.zeros((40, 60), np.uint8)
    horizon, edge = rng.integers(12, 22), rng.integers(15, 45)
    labels[:horizon] = 2
    labels[horizon - 6 : horizon + 8, edge - 12 : edge + 12] = 1
    noise = rng.normal(0, 5, (40, 60, 3))
    return (np.array(palette)[labels] + noise).clip(0, 255).astype(np.uint8), labels


@dataclass(frozen=True)
class World:
    settings: Settings
    spec: RoundSpec
    buffer: FrameBuffer
    source: LabelledSet

    def score(
        self, candidate: SegmentationNetwork, *, source_free: bool = False, released: SegmentationNetwork | None = None
    ) -> ScoredRound:
        incumbent = knows(DAY)
        networks = {"candidate": candidate, "incumbent": incumbent, "released": released or incumbent}
        source = None if source_free else self.source
        return score_round(self.settings, self.spec, self.buffer, source, **networks)[:4]

    def verdict(self, candidate: SegmentationNetwork, *, source_free: bool = False) -> Verdict:
        return self.judge(*self.score(candidate, source_free=source_free), source_free=source_free)

    def judge(
        self,
        released: ModelScores | None,
        incumbent: ModelScores,
        found: ModelScores,
        reference: list[float],
        *,
        source_free: bool = False,
    ) -> Verdict:
        scores = RoundScores(
            status="completed",
            reason="step budget",
            steps=10,
            seconds=1.0,
            reference_marginal=reference,
            released=released,
            incumbent=incumbent,
            candidate=found,
        )
        scores = RoundScores.model_validate_json(scores.model_dump_json())
        spec = self.spec.model_copy(update={"settings": {}}) if source_free else self.spec
        return decide(spec, scores, self.settings.gate, NAMES, at=1.0)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory):
    root = tmp_path_factory.mktemp("scores")
    settings = make_settings(root)
    layout = StateLayout(settings.state)
    layout.create()
    with_frames = FrameBuffer.open(layout, settings.buffer, writable=True)
    records = with_frames.append([new_frame(n, scene(100 + n, DUSK)[0], settings) for n in range(10)])
    spec = RoundSpec(
        round=3,
        incumbent=1,
        released=1,
        train_frames=(),
        holdout_frames=tuple(record.id for record in records),
        settings=settings.model_dump(mode="json"),
        created=1.0,
        trigger="manual",
    )
    yield World(settings, spec, with_frames, import_labelled(settings, layout))
    with_frames.close()


def make_settings(root: Path) -> Settings:
    for part, count in (("train", 2), ("val", 16)):
        for kind in ("images", "labels"):
            (root / part / kind).mkdir(parents=True)
        for n in range(count):
            pixels, labels = scene(n, DAY)
            Image.fromarray(pixels).save(root / part / "images" / f"{n:02d}.png")
            Image.fromarray(labels).save(root / part / "labels" / f"{n:02d}.png")
    folders = {"images": root / "train/images", "labels": root / "train/labels"}
    folders |= {"validation_images": root / "val/images", "validation_labels": root / "val/labels"}
    return Settings.model_validate(
        {
            "state": root / "state",
            "classes": [{"name": name, "color": colour} for name, colour in zip(NAMES, DAY, strict=True)],
            "watch": {"folder": root / "drop"},
            "buffer": {"height": 48, "width": 64, "capacity_frames": 32, "advanced": {"tile": 16}},
            "source": folders,
            "round": {"advanced": {"score_images": 16}},
            "gate": {"advanced": {"bootstrap": 200}},
        }
    )


def new_frame(number: int, pixels: NDArray[np.uint8], settings: Settings) -> NewFrame:
    fitted = fit_frame(pixels, settings.buffer.height, settings.buffer.width)
    digest = hashlib.sha256(pixels.tobytes()).hexdigest()
    return NewFrame(FileFact(f"{number}.png", 1, number), digest, float(number), *pixels.shape[:2], fitted)


def test_better_candidate_is_accepted(world: World) -> None:
    verdict = world.verdict(knows(DAY, DUSK))
    assert verdict.decision == "accepted", verdict
    assert {"vote_styled_source", "vote_disagreement"} <= {item.name for item in verdict.checks if item.passed}


@pytest.mark.parametrize(
    ("candidate", "decision", "failed"),
    [
        (lambda: knows(DAY), "inconclusive", None),
        (lambda: knows(DAY, sharpness=80.0), "inconclusive", None),
        (lambda: knows(DUSK), "rejected", "source_miou"),
        (lambda: knows((DUSK[0], DAY[1], DAY[0])), "rejected", "vanished_class"),
        (lambda: knows(DUSK[::-1]), "rejected", "source_miou"),
    ],
    ids=["identical copy", "overconfident copy", "forgot the day", "everything is road", "classes exchanged"],
)
def test_other_candidates_are_not(
    world: World, candidate: Callable[[], SegmentationNetwork], decision: str, failed: str | None
) -> None:
    verdict = world.verdict(candidate())
    assert verdict.decision == decision, verdict
    if failed:
        assert failed in {item.name for item in verdict.checks if not item.passed}


def test_scores_have_one_entry_an_image(world: World) -> None:
    released, incumbent, candidate, reference = world.score(knows(DAY, DUSK))
    assert released is not None
    assert (released.version, incumbent.version, candidate.version) == (1, 1, None)
    assert released.source == incumbent.source
    assert not released.area
    for scores in (incumbent, candidate):
        assert np.shape(scores.area) == np.shape(scores.marginal) == (10, 3)
        assert np.shape(scores.gram) == (10, 3, 3)
        assert np.shape(scores.source.tp) == np.shape(scores.styled.tp) == (16, 3)
        assert len(scores.dropout_disagreement) == len(scores.flip_consistency) == len(scores.agreement) == 10
        np.testing.assert_allclose(np.sum(scores.area, axis=1), 1.0)
    assert incumbent.agreement == [1.0] * 10
    assert sum(reference) == pytest.approx(1.0)
    truth = np.mean([np.bincount(scene(n, DAY)[1].ravel(), minlength=3) / 2400 for n in [*range(16), 0, 1]], axis=0)
    np.testing.assert_allclose(reference, truth, atol=0.01)


@pytest.mark.parametrize("source_free", [False, True])
def test_every_model_is_counted_on_canary_images(world: World, source_free: bool) -> None:
    images = [CanaryImage(f"{n}", *scene(200 + n, DUSK), n) for n in range(6)]
    good, bad = knows(DAY, DUSK), knows((DUSK[0], DAY[1], DAY[0]))
    networks = {"candidate": good, "incumbent": knows(DAY), "released": knows(DAY), "others": {"student": bad}}
    source = None if source_free else world.source
    found = score_round(world.settings, world.spec, world.buffer, source, canary=images, **networks)
    counts = [model.canary for model in (found.candidate, found.incumbent, found.others["student"])]
    shares = [np.sum(item.tp) / (np.sum(item.tp) + np.sum(item.fn)) for item in counts if item]
    assert [np.shape(item.tp) for item in counts if item] == [(6, 3)] * 3
    assert shares[0] > 0.95 > shares[1] and shares[0] > shares[2]
    assert world.score(good)[1].canary is None


def test_scoring_again_gives_the_same_numbers(world: World) -> None:
    assert world.score(knows(DAY, DUSK)) == world.score(knows(DAY, DUSK))


def test_scores_know_the_truth(world: World) -> None:
    """Counts on source are near perfect for a network that knows the day; on restyled source only for the candidate."""
    _, incumbent, candidate, _ = world.score(knows(DAY, DUSK))
    right = {
        (who, what): np.sum(counts.tp) / np.sum([counts.tp, counts.fn])
        for who, scores in (("incumbent", incumbent), ("candidate", candidate))
        for what, counts in (("source", scores.source), ("styled", scores.styled))
    }
    assert right["incumbent", "source"] > 0.95
    assert right["candidate", "source"] > 0.95
    assert right["candidate", "styled"] > right["incumbent", "styled"] + 0.2


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(world: World, value: float) -> None:
    candidate = knows(DAY, DUSK)
    with torch.no_grad():
        candidate.decoder.known[0, 0, 0] = value
    scored = world.score(candidate)
    assert scored[1].finite
    assert scored[2] == ModelScores(version=None, finite=False)
    assert world.judge(*scored).decision == "rejected"


def test_logits_that_are_not_finite(world: World) -> None:
    """All weights are numbers, and still the answer is not: 3e38 squared."""
    candidate = knows(DAY, DUSK)
    with torch.no_grad():
        candidate.decoder.known.fill_(3e38)
    assert world.score(candidate)[2] == ModelScores(version=None, finite=False)


def test_tensors_that_differ(world: World) -> None:
    candidate = knows(DAY, DUSK)
    candidate.decoder.known = nn.Parameter(candidate.decoder.known[:1])
    candidate.decoder.extra = nn.Parameter(torch.ones(1))
    scored = world.score(candidate)
    assert scored[2].missing == ["decoder.extra", "decoder.known"]
    assert world.judge(*scored).decision == "rejected"


def test_source_free_takes_the_released_model_as_reference(world: World) -> None:
    released, incumbent, candidate, reference = world.score(knows(DAY, DUSK), source_free=True)
    assert released is None
    assert candidate.source is candidate.styled is None
    np.testing.assert_allclose(reference, np.mean(incumbent.marginal, axis=0))
    assert world.verdict(knows(DAY), source_free=True).decision == "inconclusive"


def test_released_model_is_scored_when_it_is_another_version(world: World) -> None:
    later = World(world.settings, world.spec.model_copy(update={"incumbent": 4}), world.buffer, world.source)
    released, incumbent, _, _ = later.score(knows(DAY), released=knows(DUSK))
    assert released is not None
    assert (released.version, incumbent.version) == (1, 4)
    assert np.sum(released.source.tp) < np.sum(incumbent.source.tp)
    reference = later.score(knows(DAY), released=knows(DUSK), source_free=True)[3]
    assert reference != pytest.approx(np.mean(incumbent.marginal, axis=0))


def test_every_candidate_is_scored_in_the_other_conditions_too(world: World) -> None:
    """The newest condition decides; elsewhere the best version is read, and one that is damaged is said."""
    ids = world.spec.holdout_frames
    others = tuple(
        KnownCondition(number=number, name=f"condition-{number}", golden=ids[:3], best=best, labelled=best == 1)
        for number, best in ((1, 1), (3, 5), (4, 6))
    )
    conditions = RoundConditions(newest=2, name="dusk", frames=ids[4:], others=others)
    spec = world.spec.model_copy(update={"conditions": conditions})

    def load(version: int) -> SegmentationNetwork:
        if version == 6:
            raise CorruptCheckpoint("version 6 is damaged")
        return knows(DUSK)

    day, both = knows(DAY), knows(DAY, DUSK)
    networks = {"candidate": both, "incumbent": day, "released": day}
    found = score_round(
        world.settings, spec, world.buffer, world.source, **networks, others={"student": day}, name="teacher", load=load
    )
    assert len(found.candidate.area) == len(found.others["student"].area) == 6
    source, foreign, damaged = found.elsewhere
    assert [len(item.candidates["teacher"].area) for item in (source, foreign)] == [3, 3]
    assert source.best.source == found.incumbent.source and source.candidates["student"].agreement == [1.0] * 3
    assert foreign.best.version == 5 and foreign.best.source is None
    assert damaged.best is None and damaged.missing == "version 6 is damaged" and not damaged.candidates
    scores = RoundScores(status="completed", reason="", steps=1, seconds=1.0, **found._asdict(), name="teacher")
    verdict = decide(spec, scores, world.settings.gate, NAMES, at=1.0)
    assert [item.name for item in verdict.candidates] == ["teacher", "student"]
    assert [item.images for item in verdict.candidates[0].elsewhere] == [16, 3, 0]


@pytest.mark.parametrize(("best", "trusted"), [(1, True), (5, False)])
def test_the_reference_comes_from_conditions_where_the_released_model_is_best(
    world: World, best: int, trusted: bool
) -> None:
    """Without source; on frames that the released model never saw its mix of classes is no reference."""
    ids = world.spec.holdout_frames
    others = (KnownCondition(number=1, name="day", golden=ids[:3], best=best, labelled=False),)
    conditions = RoundConditions(newest=2, name="dusk", frames=ids[3:], others=others)
    spec = world.spec.model_copy(update={"conditions": conditions})
    there = World(
        world.settings, spec.model_copy(update={"conditions": None, "holdout_frames": ids[:3]}), world.buffer, None
    )
    here = World(world.settings, spec, world.buffer, None)
    _, deciding, _, reference = here.score(knows(DAY), source_free=True)
    _, golden, _, _ = there.score(knows(DAY), source_free=True)
    np.testing.assert_allclose(reference, np.mean((golden if trusted else deciding).marginal, axis=0))
    assert np.mean(golden.marginal, axis=0) != pytest.approx(np.mean(deciding.marginal, axis=0))


def test_at_most_score_images_are_scored(world: World) -> None:
    few = world.settings.model_copy(update={"round": changed(world.settings.round, score_images=5)})
    _, incumbent, _, _ = World(few, world.spec, world.buffer, world.source).score(knows(DAY))
    assert len(incumbent.area) == len(incumbent.source.tp) == 5


def test_only_the_valid_region_counts(world: World, tmp_path: Path) -> None:
    """The same picture in a larger frame, so with padding, gets the same scores; a tiny picture works too."""
    layout = StateLayout(tmp_path / "state")
    layout.create()
    wide = world.settings.buffer.model_copy(update={"width": 128})
    settings = world.settings.model_copy(update={"buffer": wide})
    with FrameBuffer.open(layout, wide, writable=True) as buffer:
        tiny = np.full((2, 60, 3), 90, np.uint8)
        frames = [scene(100 + n, DUSK)[0] for n in range(3)] + [tiny]
        records = buffer.append([new_frame(n, pixels, settings) for n, pixels in enumerate(frames)])
        spec = world.spec.model_copy(update={"holdout_frames": tuple(record.id for record in records)})
        _, padded, _, _ = World(settings, spec, buffer, world.source).score(knows(DAY), source_free=True)
    _, plain, _, _ = world.score(knows(DAY), source_free=True)
    assert len(padded.area) == 4
    for n in range(3):
        assert padded.area[n] == pytest.approx(plain.area[n], abs=0.02)
        assert padded.flip_consistency[n] == pytest.approx(plain.flip_consistency[n], abs=0.02)


def test_no_holdout_frames(world: World) -> None:
    spec = world.spec.model_copy(update={"holdout_frames": ()})
    empty = World(world.settings, spec, world.buffer, world.source)
    scored = empty.score(knows(DAY, DUSK))
    _, incumbent, candidate, _ = scored
    assert candidate.area == []
    assert candidate.styled is None
    assert candidate.entropy is None
    assert incumbent.source is not None
    assert empty.judge(*scored).decision == "inconclusive"
    assert empty.verdict(knows(DUSK)).decision == "rejected"


@pytest.mark.parametrize(
    ("items", "most", "expected"),
    [(range(3), 5, [0, 1, 2]), (range(10), 4, [0, 3, 6, 9]), (range(7), 1, [0]), ([], 3, [])],
)
def test_evenly(items: Sequence[int], most: int, expected: list[int]) -> None:
    assert evenly(list(items), most) == expected
