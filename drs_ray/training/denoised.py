"""The methods of denoised smoothing (Salman et al. 2020): a denoiser before a classifier that saw no noise."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from drs_ray.smoothing.partition import Partition
from drs_ray.training.trainee import NoiseSource, Trainee


@dataclass(frozen=True)
class Denoising:
    """What the training of a denoiser needs besides noisy sub-images.

    partition: the partition whose sub-images the denoiser should return; None: the whole image, as where the layout has
    full size. classifier: the one behind the denoiser, in eval mode, without gradients of its weights; only for
    `stability`.
    """

    partition: Partition | None = None
    classifier: nn.Module | None = None

    def clean(self, images: Tensor, sub_image: int) -> Tensor:
        """What the denoiser should return for whole images: float32 [n, C, H, W] -> [n, C, h, w]."""
        if self.partition is None:
            return images
        return self.partition.arrange(self.partition.extract(images, sub_image), sub_image)


def clean_loss(trainee: Trainee, values: Tensor, labels: Tensor, *, label_smoothing: float) -> tuple[Tensor, Tensor]:
    """Cross-entropy of a classifier without noise; see `drs_ray.training.trainee.Loss`."""
    logits = trainee(values)
    return functional.cross_entropy(logits, labels, label_smoothing=label_smoothing), logits


def mse_loss(trainee: Trainee, values: Tensor, clean: Tensor, noise: NoiseSource) -> tuple[Tensor, None]:
    """Mean squared error of the denoised images, per pixel and channel; see `drs_ray.training.trainee.Loss`.

    At one noise level, the errors of a prediction of the noise, of the clean image and of the velocity are the same up
    to a factor, but for the clipping of the clean image.
    """
    return functional.mse_loss(trainee(values + noise(values)), clean), None


def stability_loss(
    trainee: Trainee, values: Tensor, clean: Tensor, noise: NoiseSource, *, classifier: nn.Module
) -> tuple[Tensor, Tensor]:
    """Cross-entropy of the classifier's answer to denoised images against its own choice for the clean ones.

    The objective Stab of Salman et al. 2020, section 3; see `drs_ray.training.trainee.Loss`.
    """
    with torch.no_grad():
        chosen = classifier(clean).argmax(1)
    logits = classifier(trainee(values + noise(values))).float()
    return functional.cross_entropy(logits, chosen), logits
