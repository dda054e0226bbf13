"""Statistics of the softmax of one image for batch nuclear norm, class marginals and entropy.

Batch nuclear norm (BNM; Cui et al., CVPR 2020): ||P||_* of the prediction matrix P [pixels, classes] is high only when
predictions are confident *and* spread over classes. Musgrave et al. 2022 propose it as a label-free validator. The
singular values of P are the square roots of the eigenvalues of P^T P, and the P^T P of several images is the sum of
theirs. So each image leaves one small Gram matrix, and the joint norm of any resample follows from sums.
"""

import torch
from torch import Tensor

MAX_PIXELS = 65_536
"""Largest number of pixels of one image in its Gram matrix; a regular grid keeps every region's share."""


def gram_matrix(probabilities: Tensor) -> Tensor:
    """Return P^T P [K, K] float64 of the softmax [K, h, w], over a regular grid of at most `MAX_PIXELS` pixels.

    Double precision is needed because the norm takes square roots: an error of 1e-7 beside a zero eigenvalue would
    become 3e-4.
    """
    height, width = probabilities.shape[-2:]
    step = 1
    while (-(-height // step)) * (-(-width // step)) > MAX_PIXELS:
        step += 1
    rows = probabilities[:, ::step, ::step].flatten(1).double()  # [K, n]
    return rows @ rows.T


def marginal(probabilities: Tensor) -> Tensor:
    """Return the mean softmax [K] float64 of the softmax [K, h, w]."""
    return probabilities.flatten(1).double().mean(dim=1)


def area(prediction: Tensor, num_classes: int) -> Tensor:
    """Return the share of pixels of each class [K] float64 of a class map [h, w]."""
    return torch.bincount(prediction.flatten(), minlength=num_classes).double() / prediction.numel()


def mean_entropy(probabilities: Tensor) -> float:
    """Return the mean entropy over the pixels of the softmax [K, h, w] (nats).

    It is a metric, never a vote, because training minimises it.
    """
    return float(torch.special.entr(probabilities).sum(dim=0).mean(dtype=torch.float64))
