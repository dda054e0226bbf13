"""Pixel counts of a prediction against labels: the input of every IoU."""

from collections.abc import Iterable

import torch
from torch import Tensor

from storage.rounds.records import ImageCounts


def confusion(prediction: Tensor, label: Tensor, num_classes: int, ignore_index: int) -> Tensor:
    """Return the confusion matrix [K, K] int64, rows labels, columns predictions, of class maps [h, w] of one size.

    Pixels labelled `ignore_index` do not count, even when that value is a class index. Raises ValueError when the sizes
    differ or a value is not a class.
    """
    if prediction.shape != label.shape:
        raise ValueError(f"prediction {tuple(prediction.shape)} and label {tuple(label.shape)} differ in size")
    counted = label != ignore_index
    prediction, label = prediction[counted].long(), label[counted].long()
    highest = int(max(prediction.max(), label.max())) if label.numel() else 0
    if highest >= num_classes:
        raise ValueError(f"class {highest} in a map of {num_classes} classes")
    pairs = torch.bincount(label * num_classes + prediction, minlength=num_classes**2)
    return pairs.view(num_classes, num_classes)  # [K * K] -> [K, K]


def count_images(pairs: Iterable[tuple[Tensor, Tensor]], num_classes: int, ignore_index: int) -> ImageCounts:
    """Count images one by one: pairs of a prediction and its label, class maps [h, w] of one size."""
    rows = []
    for prediction, label in pairs:
        matrix = confusion(prediction, label, num_classes, ignore_index)
        hit = matrix.diagonal()
        rows.append(torch.stack([hit, matrix.sum(0) - hit, matrix.sum(1) - hit]).tolist())  # [3, K]: tp, fp, fn
    tp, fp, fn = ([row[kind] for row in rows] for kind in range(3))
    return ImageCounts(tp=tp, fp=fp, fn=fn)
