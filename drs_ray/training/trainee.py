"""The network in training, a classifier or a denoiser: a function of values of its own sub-image."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from drs_ray.smoothing.partition import Partition

NoiseSource = Callable[[Tensor], Tensor]
"""Values [n, C, d] -> new Gaussian noise of their shape, with the sub-image's sigma."""

Loss = Callable[["Trainee", Tensor, Tensor, NoiseSource, int], tuple[Tensor, Tensor | None]]
"""A method: (trainee, values [n, C, d] without noise, targets, noise source, epoch from 1) -> the mean loss of the
images, and the logits [n, classes] of one noisy copy of each image (None: there are none). The targets of a classifier
are its labels, int64 [n], those of a denoiser the clean images that it should return, float32 [n, C, h, w]."""


class Trainee:
    """A sub-image's network with its layout. Values: float32 [n, C, d], only the sub-image's pixels (`Partition`).

    A method that changes values, such as an attack, cannot change pixels of other sub-images or empty cells of the
    layout, because they are not among the values.
    """

    def __init__(
        self,
        module: nn.Module,
        partition: Partition,
        sub_image: int,
        network: nn.Module | None = None,
        layout: torch.memory_format = torch.contiguous_format,
    ):
        """network: the module called in training, or its wrapper that averages the gradients of several workers.

        layout: memory format of the inputs.
        """
        self._module = module
        self._network = module if network is None else network
        self._partition = partition
        self._sub_image = sub_image
        self._layout = layout

    def __call__(self, values: Tensor) -> Tensor:
        """Logits float32 [n, classes], or denoised images float32 [n, C, h, w], with gradients."""
        return self._answer(self._network, values)

    @contextmanager
    def fixed(self) -> Iterator[Callable[[Tensor], Tensor]]:
        """The module in eval mode, without gradients of its weights and without the wrapper for several workers."""
        trained = [parameter for parameter in self._module.parameters() if parameter.requires_grad]
        self._module.eval()
        for parameter in trained:
            parameter.requires_grad_(False)
        try:
            yield lambda values: self._answer(self._module, values)
        finally:
            for parameter in trained:
                parameter.requires_grad_(True)
            self._module.train()

    def _answer(self, network: nn.Module, values: Tensor) -> Tensor:
        inputs = self._partition.arrange(values, self._sub_image)
        answer: Tensor = network(inputs.contiguous(memory_format=self._layout))
        return answer.float()  # losses are computed in float32, also with mixed precision
