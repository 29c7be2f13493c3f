"""The answer of the soft smoothed classifier, as estimated from several noisy copies of each image."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional


def log_mean_answer(logits: Tensor) -> Tensor:
    """log of the mean over the copies of the softmax: logits [copies, n, classes] -> [n, classes]."""
    return torch.logsumexp(functional.log_softmax(logits, dim=-1), dim=0) - math.log(len(logits))
