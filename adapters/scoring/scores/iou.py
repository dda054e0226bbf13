"""Intersection over union from pixel counts (numpy only, so that the gate can use it too).

Counts of several images add up: the mIoU of a set of images is that of the summed counts, as in the Pascal VOC and
Cityscapes protocols, and never a mean of per-image values.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Counts = NDArray[np.float64]
"""Pixel counts [..., classes]; whole numbers, or weighted sums of them."""


def class_iou(tp: Counts, fp: Counts, fn: Counts) -> NDArray[np.float64]:
    """Return the IoU of each class, tp / (tp + fp + fn) [..., classes]; NaN where neither labelled nor predicted."""
    union = tp + fp + fn
    iou: Counts = np.divide(tp, union, out=np.full(union.shape, np.nan), where=union > 0)
    return iou


def mean_iou(tp: Counts, fp: Counts, fn: Counts) -> NDArray[np.float64]:
    """Return the mean IoU over the classes that are labelled or predicted [...]; NaN where there is none."""
    return _mean_over(class_iou(tp, fp, fn), tp + fp + fn > 0)


def labelled_mean_iou(tp: Counts, fp: Counts, fn: Counts, weights: Sequence[float] | None = None) -> Counts:
    """Return the mean IoU over the labelled classes only [...]; NaN where there is none.

    Use it to compare two models on the same images: the set of classes does not depend on what a model predicts.
    `weights` [classes] says how much each class counts, not below 0; None: all alike.
    """
    return _mean_over(class_iou(tp, fp, fn), tp + fn > 0, weights)


def _mean_over(iou: Counts, counted: NDArray[np.bool_], weights: Sequence[float] | None = None) -> Counts:
    shares = counted * np.asarray(1.0 if weights is None else weights)
    number = shares.sum(axis=-1)
    total = (np.where(counted, iou, 0.0) * shares).sum(axis=-1)
    mean: Counts = np.divide(total, number, out=np.full(np.shape(number), np.nan), where=number > 0)
    return mean
