"""Mixtures of logits and their alignment, against plain loops in double precision."""

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from adapters.networks.training_pass import IGNORE_INDEX
from adapters.self_training.logit_alignment import inverse_of, looked_up, stacked, tables_of
from adapters.self_training.logit_distributions import Following, LogitDistributions, Mixture

CLASSES, COMPONENTS = 3, 2
HOW = Following(iterations=3, momentum=0.9, warmup=4, share=0.05)


@dataclass
class Plain:
    """One mixture, with loops."""

    weight: np.ndarray
    mean: np.ndarray
    variance: np.ndarray

    def fitted(self, data: np.ndarray, iterations: int) -> "Plain":
        weight, mean, variance = self.weight, self.mean, self.variance
        for _ in range(iterations):
            density = [
                weight[k] * np.exp(-((data - mean[k]) ** 2) / (2 * variance[k])) / np.sqrt(variance[k])
                for k in range(len(mean))
            ]
            part = np.array(density) / np.sum(density, axis=0)
            weight = part.sum(1) / len(data)
            mean = (part * data).sum(1) / part.sum(1)
            variance = (part * (data - mean[:, None]) ** 2).sum(1) / part.sum(1)
        return Plain(weight, mean, variance)

    def cdf(self, place: float) -> float:
        terms = zip(self.weight, self.mean, self.variance, strict=True)
        return sum(w * 0.5 * (1 + math.erf((place - m) / math.sqrt(2 * v))) for w, m, v in terms)


def begun(data: np.ndarray) -> Plain:
    quantiles = np.array([-0.6744897501960817, 0.6744897501960817])  # a quarter and three quarters of a normal one
    variance = np.full(2, data.var())
    return Plain(np.full(2, 0.5), data.mean() + data.std() * quantiles, variance)


def drawn(seed: int = 0, pixels: int = 400) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits [N, 3] that are high at the label, higher for class 0; some pixels without a label; class 2 is rare."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.multinomial(torch.tensor([0.6, 0.3, 0.1]), pixels, replacement=True, generator=generator)
    logits = 8.0 + torch.randn(pixels, CLASSES, generator=generator)
    logits[torch.arange(pixels), labels] += torch.tensor([6.0, 4.0, 2.0])[labels]
    labels[:20] = IGNORE_INDEX
    return logits, labels


def fitted(tied: bool = False) -> LogitDistributions:
    distributions = LogitDistributions(CLASSES, COMPONENTS, tied=tied)
    distributions.update(*drawn(), HOW)
    return distributions


def data_of(logits: torch.Tensor, labels: torch.Tensor, row: int, column: int) -> np.ndarray:
    return logits[labels == row, column].double().numpy()


def plain_of(distributions: LogitDistributions, row: int, column: int) -> Plain:
    return Plain(*(field[row, column].double().numpy() for field in distributions.mixture()))


def assert_close(distributions: LogitDistributions, row: int, column: int, expected: Plain) -> None:
    for name, mine in zip(Mixture._fields, distributions.mixture(), strict=True):
        np.testing.assert_allclose(mine[row, column], getattr(expected, name), rtol=1e-3, atol=1e-4)


def test_the_first_update_is_that_of_plain_loops() -> None:
    distributions, (logits, labels) = fitted(), drawn()
    for row in range(CLASSES):
        for column in range(CLASSES):
            data = data_of(logits, labels, row, column)
            assert_close(distributions, row, column, begun(data).fitted(data, HOW.iterations))
    assert distributions.seen.eq(1).all() and distributions.age.eq(1).all() and distributions.updates == 1


def test_later_updates_follow_with_a_momentum_that_warms_up() -> None:
    distributions = fitted()
    before = plain_of(distributions, 1, 2)
    logits, labels = drawn(seed=1)
    distributions.update(logits, labels, HOW)
    new = before.fitted(data_of(logits, labels, 1, 2), HOW.iterations)
    decay = 0.9 * 1 / 4
    mixed = [
        decay * old + (1 - decay) * now for old, now in zip(vars(before).values(), vars(new).values(), strict=True)
    ]
    assert_close(distributions, 1, 2, Plain(*mixed))


def test_a_class_with_few_pixels_stays_and_later_moves_by_all_that_it_missed() -> None:
    distributions = fitted()
    logits, labels = drawn(seed=1)
    few = labels.masked_fill(labels == 2, IGNORE_INDEX)
    before = plain_of(distributions, 2, 0)
    for _ in range(2):
        distributions.update(logits, few, HOW)
    assert_close(distributions, 2, 0, before)
    assert distributions.age[2].tolist() == [3, 3, 3] and distributions.seen[2].tolist() == [1, 1, 1]
    distributions.update(logits, labels, HOW)
    new = before.fitted(data_of(logits, labels, 2, 0), HOW.iterations)
    decay = (0.9 * 3 / 4) ** 3
    assert_close(
        distributions,
        2,
        0,
        Plain(*(decay * o + (1 - decay) * n for o, n in zip(vars(before).values(), vars(new).values(), strict=True))),
    )
    assert distributions.age[2].tolist() == [1, 1, 1]


def test_the_anchors_are_the_mixtures_of_all_own_logits_and_of_all_others() -> None:
    anchors, (logits, labels) = fitted(tied=True), drawn()
    pairs = [(row, column) for row in range(CLASSES) for column in range(CLASSES)]
    for own in (True, False):
        data = np.concatenate([data_of(logits, labels, *pair) for pair in pairs if (pair[0] == pair[1]) == own])
        for pair in pairs:
            if (pair[0] == pair[1]) == own:
                assert_close(anchors, *pair, begun(data).fitted(data, HOW.iterations))


def test_nothing_labelled_moves_nothing() -> None:
    distributions = LogitDistributions(CLASSES, COMPONENTS)
    distributions.update(drawn()[0], torch.full((400,), IGNORE_INDEX), HOW)
    assert distributions.mean.eq(0).all() and distributions.seen.eq(0).all() and distributions.weight.eq(0.5).all()


def aligned_by_loops(own: Plain, anchor: Plain, logit: float) -> float:
    """The logit with the same quantile in the anchor, by a fine search."""
    places = np.linspace(-10, 40, 20001)
    values = np.array([anchor.cdf(place) for place in places])
    return float(np.interp(np.clip(own.cdf(logit), 0.01, 0.99), values, places))


def test_alignment_is_the_inverse_of_the_anchor_at_the_quantile() -> None:
    distributions, anchors = fitted(), fitted(tied=True)
    tables = tables_of(distributions, anchors, 0.01)
    logits = torch.tensor([[7.0, 9.5, 11.0]]).view(1, 3, 1, 1).expand(1, 3, 1, CLASSES)
    shift, quantile = looked_up(tables, logits, torch.arange(CLASSES).view(1, 1, -1))
    for row in range(CLASSES):
        for column in range(CLASSES):
            logit, own = logits[0, column, 0, row].item(), plain_of(distributions, row, column)
            anchor = plain_of(anchors, 0, 0 if row == column else 1)
            assert quantile[0, column, 0, row].item() == pytest.approx(own.cdf(logit), abs=2e-3)
            expected = aligned_by_loops(own, anchor, logit) - logit
            assert shift[0, column, 0, row].item() == pytest.approx(expected, abs=0.03), (row, column)


def test_own_logits_of_a_class_that_is_predicted_too_often_are_lowered() -> None:
    """Class 0 has own logits around 14, class 2 around 10; the anchor lies between."""
    tables = tables_of(fitted(), fitted(tied=True), 0.01)
    own = torch.tensor([14.0, 12.0, 10.0]).view(1, 3, 1, 1).expand(1, 3, 1, 3)
    shift, _ = looked_up(tables, own, torch.arange(3).view(1, 1, -1))
    assert shift[0, 0, 0, 0] < -0.5 and shift[0, 2, 0, 2] > 1.0


def test_rows_that_were_never_fitted_are_not_aligned_and_domains_keep_their_rows() -> None:
    known, new, anchors = fitted(), LogitDistributions(CLASSES, COMPONENTS), fitted(tied=True)
    tables = stacked(tables_of(known, anchors, 0.01), tables_of(new, anchors, 0.01))
    logits = torch.full((1, CLASSES, 1, 2), 12.0)
    shift, _ = looked_up(tables, logits, torch.tensor([[[1, 1 + CLASSES]]]))
    assert shift[..., 0].ne(0).all() and shift[..., 1].eq(0).all()
    blank = tables_of(known, LogitDistributions(CLASSES, COMPONENTS, tied=True), 0.01)
    assert looked_up(blank, logits, torch.ones(1, 1, 2, dtype=torch.long))[0].eq(0).all(), "no anchor yet"


def test_inverting_a_distribution_gives_the_place_back() -> None:
    anchor = Mixture(*(torch.tensor(values).view(1, 1, 2) for values in ([0.3, 0.7], [-2.0, 5.0], [1.0, 4.0])))
    places = torch.linspace(-4, 9, 50).view(1, 1, -1)
    torch.testing.assert_close(inverse_of(anchor, anchor.cdf(places)), places, rtol=1e-3, atol=2e-2)
