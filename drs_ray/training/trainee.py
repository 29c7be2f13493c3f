"""The classifier in training as a method sees it: values of its own sub-image in, logits out, nothing else to read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from drs_ray.smoothing.partition import Partition

NoiseSource = Callable[[Tensor], Tensor]
"""Values [n, C, d] -> new Gaussian noise of their shape, with the sub-image's sigma."""

Loss = Callable[["Trainee", Tensor, Tensor, NoiseSource, int], tuple[Tensor, Tensor]]
"""A method: (trainee, values [n, C, d] without noise, labels int64 [n], noise source, epoch from 1) -> the loss, mean
over the images, and the logits [n, classes] of one noisy copy of each."""


class Trainee:
    """A sub-image's classifier behind its layout. Values are float32 [n, C, d]: the own pixels alone (`Partition`).

    A method that changes values, as an attack does, cannot change another sub-image's pixels or the layout's empty
    cells: it never has them.
    """

    def __init__(
        self,
        module: nn.Module,
        partition: Partition,
        sub_image: int,
        network: nn.Module | None = None,
        layout: torch.memory_format = torch.contiguous_format,
    ):
        """`network` is what training calls: the module, or its wrapper that joins the gradients of several workers.

        layout: in memory, of what it is given.
        """
        self._module = module
        self._network = module if network is None else network
        self._partition = partition
        self._sub_image = sub_image
        self._layout = layout

    def __call__(self, values: Tensor) -> Tensor:
        """Logits float32 [n, classes], to be trained on."""
        return self._answer(self._network, values)

    @contextmanager
    def fixed(self) -> Iterator[Callable[[Tensor], Tensor]]:
        """The classifier as it votes: in eval mode, its weights without gradients, in this process alone."""
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
        logits: Tensor = network(inputs.contiguous(memory_format=self._layout))
        return logits.float()  # bfloat16 under mixed precision: losses are computed in float32
