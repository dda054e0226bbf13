"""Pixel counts of a prediction against labels: the input of every IoU."""

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


class CountsOverImages:
    """Collects the counts of one model, image by image."""

    def __init__(self, num_classes: int, ignore_index: int) -> None:
        self._num_classes = num_classes
        self._ignore_index = ignore_index
        self._rows: list[Tensor] = []

    def add(self, prediction: Tensor, label: Tensor) -> None:
        """Count one image: class maps [h, w]."""
        matrix = confusion(prediction, label, self._num_classes, self._ignore_index)
        hit = matrix.diagonal()
        self._rows.append(torch.stack([hit, matrix.sum(0) - hit, matrix.sum(1) - hit]).cpu())  # [3, K]: tp, fp, fn

    def counts(self) -> ImageCounts:
        """Return everything counted so far, one row per image."""
        tp, fp, fn = ([row[kind].tolist() for row in self._rows] for kind in range(3))
        return ImageCounts(tp=tp, fp=fp, fn=fn)
