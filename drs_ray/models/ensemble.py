"""Several networks as one base classifier (Horvath et al. 2022): the mean of their logits."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Ensemble(nn.Module):
    """The mean of the logits of several networks. It is computed in float32, also where they compute in bfloat16."""

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, h, w] -> logits [N, num_classes]. Every member gets a copy, which it may change in place."""
        return torch.stack([member(x.clone()).float() for member in self.members]).mean(dim=0)
