"""A world of drawn numbers whose truth is known: labels, and models that are right about a chosen share of them."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from numpy.typing import NDArray

from storage.rounds.records import ImageCounts, ModelScores, RoundScores, RoundSpec

NAMES = ("road", "building", "tree", "sky", "pole")
PRIOR = np.array([0.38, 0.28, 0.2, 0.11, 0.03])
CLASSES = len(PRIOR)
PIXELS = 600


@dataclass(frozen=True)
class Model:
    """A model as the gate sees it."""

    accuracy: float = 0.7
    """Share of target pixels that are right."""
    confidence: float = 0.6
    """Softmax of the predicted class."""
    source: float = 0.85
    """Share of source pixels that are right."""
    styled: float = 0.7
    """Share of restyled source pixels that are right."""
    steadiness: float = 0.0
    """Share of its errors that look stable under dropout and flipping."""
    only: tuple[int, ...] = ()
    """The only classes it ever predicts, none for all."""
    hears: dict[int, int] = field(default_factory=dict)
    """Classes that it mistakes for others on target frames."""
    forgets: tuple[int, ...] = ()
    """Classes that it does not find on source images."""
    seed: int = 1
    """Of its errors."""


class World:
    """Labels of hold-out frames and source images; scores of any model on them."""

    def __init__(self, frames: int, images: int, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.frames = [self._labels(rng) for _ in range(frames)]
        self.images = [self._labels(rng) for _ in range(images)]

    @staticmethod
    def _labels(rng: np.random.Generator) -> NDArray[np.int64]:
        return rng.choice(CLASSES, PIXELS, p=rng.dirichlet(PRIOR * 60))

    def scores(self, model: Model, incumbent: Model, version: int | None) -> ModelScores:
        """What scoring would write about `model`."""
        rng = np.random.default_rng(model.seed)
        maps = [self._predict(labels, model, model.accuracy, model.seed, n) for n, labels in enumerate(self.frames)]
        others = [
            self._predict(labels, incumbent, incumbent.accuracy, incumbent.seed, n)
            for n, labels in enumerate(self.frames)
        ]
        soft = [self._softmax(map_, model.confidence) for map_ in maps]
        shaky = (1 - model.accuracy) * (1 - model.steadiness) * (len(model.only) != 1)
        noise = rng.normal(0, 0.004, (2, len(maps))) * (len(model.only) != 1)
        return ModelScores(
            version=version,
            finite=True,
            source=self._counts(replace(model, hears={}), model.source, 1000) if self.images else None,
            styled=self._counts(replace(model, hears={}), model.styled, 2000) if self.images else None,
            area=[(np.bincount(map_, minlength=CLASSES) / PIXELS).tolist() for map_ in maps],
            gram=[(rows.T @ rows).tolist() for rows in soft],
            marginal=[rows.mean(axis=0).tolist() for rows in soft],
            dropout_disagreement=[float(np.clip(0.5 * shaky + n, 0, 1)) for n in noise[0]],
            flip_consistency=[float(np.clip(1 - 0.6 * shaky + n, 0, 1)) for n in noise[1]],
            agreement=[float((a == b).mean()) for a, b in zip(maps, others, strict=True)],
            entropy=0.5,
        )

    def _counts(self, model: Model, accuracy: float, offset: int) -> ImageCounts:
        rows = []
        for number, labels in enumerate(self.images):
            map_ = self._predict(labels, model, accuracy, model.seed, offset + number)
            for lost in model.forgets:
                map_ = np.where(map_ == lost, (lost + 1) % CLASSES, map_)
            matrix = np.bincount(labels * CLASSES + map_, minlength=CLASSES**2).reshape(CLASSES, CLASSES)
            hit = matrix.diagonal()
            rows.append((hit, matrix.sum(0) - hit, matrix.sum(1) - hit))
        tp, fp, fn = ([row[kind].tolist() for row in rows] for kind in range(3))
        return ImageCounts(tp=tp, fp=fp, fn=fn)

    @staticmethod
    def _predict(labels: NDArray[np.int64], model: Model, accuracy: float, seed: int, image: int) -> NDArray[np.int64]:
        rng = np.random.default_rng([seed, image])
        map_ = np.where(rng.random(PIXELS) < accuracy, labels, rng.choice(CLASSES, PIXELS, p=PRIOR))
        for heard, said in model.hears.items():
            map_ = np.where(map_ == heard, said, map_)
        if model.only:
            map_ = np.asarray(model.only)[map_ % len(model.only)]
        return map_

    @staticmethod
    def _softmax(map_: NDArray[np.int64], confidence: float) -> NDArray[np.float64]:
        rest = (1 - confidence) / (CLASSES - 1)
        return np.where(np.eye(CLASSES)[map_] > 0, confidence, rest)


@dataclass(frozen=True)
class Round:
    """One round to be judged."""

    spec: RoundSpec
    scores: RoundScores


@pytest.fixture
def a_round() -> Callable[..., Round]:
    """A round in which `candidate` was compared with `incumbent` on `frames` frames and `images` source images."""

    def make(
        candidate: Model, incumbent: Model | None = None, *, frames: int = 12, images: int = 24, number: int = 7
    ) -> Round:
        incumbent = incumbent or Model(seed=2)
        world = World(frames, images, seed=number)
        released = world.scores(replace(incumbent, seed=2), incumbent, 1)
        scores = RoundScores(
            status="completed",
            reason="step budget",
            steps=100,
            seconds=60.0,
            reference_marginal=PRIOR.tolist(),
            released=ModelScores(version=1, finite=True, source=released.source) if images else None,
            incumbent=world.scores(incumbent, incumbent, 1),
            candidate=world.scores(candidate, incumbent, None),
        )
        spec = RoundSpec(
            round=number,
            incumbent=1,
            released=1,
            train_frames=tuple(range(100, 148)),
            holdout_frames=tuple(range(frames)),
            settings={"source": {"images": "x"} if images else None, "round": {"advanced": {"seed": 3}}},
            created=1.0,
            trigger="manual",
        )
        return Round(spec, scores)

    return make


@pytest.fixture
def model() -> type[Model]:
    """The kind of model the world scores."""
    return Model
