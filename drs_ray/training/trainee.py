"""The network in training, a classifier or a denoiser: a function of values of its own sub-images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
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
    """The network of one sub-image with its layout, or of K sub-images that are seen together.

    Values: float32 [n, K C, d], only the sub-images' pixels (`Partition.extract`), one sub-image's channels after the
    other's.

    A method that changes values, such as an attack, cannot change pixels of other sub-images or empty cells of the
    layout, because they are not among the values.
    """

    def __init__(
        self,
        module: nn.Module,
        partition: Partition,
        sub_images: Sequence[int],
        network: nn.Module | None = None,
        layout: torch.memory_format = torch.contiguous_format,
    ):
        """sub_images: their indices, K of them, with d pixels each.

        network: the module called in training, or its wrapper that averages the gradients of several workers.

        layout: memory format of the inputs.
        """
        self._module = module
        self._network = module if network is None else network
        self._partition = partition
        self.sub_images = tuple(sub_images)
        self._layout = layout

    def values(self, images: Tensor) -> Tensor:
        """Images [n, C, H, W] -> the values of its sub-images."""
        return torch.cat([self._partition.extract(images, sub_image) for sub_image in self.sub_images], dim=1)

    def __call__(self, values: Tensor) -> Tensor:
        """Logits float32 [K n, classes], or denoised images float32 [K n, C, h, w], with gradients.

        Those of all images in the first sub-image come first.
        """
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
        apart = zip(values.chunk(len(self.sub_images), dim=1), self.sub_images, strict=True)
        inputs = torch.cat([self._partition.arrange(each, sub_image) for each, sub_image in apart])
        answer: Tensor = network(inputs.contiguous(memory_format=self._layout))
        return answer.float()  # losses are computed in float32, also with mixed precision
