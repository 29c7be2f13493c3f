"""Counting votes: from one sub-image of an image, its noise and its base classifier to the votes of each class."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from drs_ray.errors import ClassifierError
from drs_ray.smoothing.keys import NoiseKey
from drs_ray.smoothing.laws import LawName, NoiseLaw, make_law
from drs_ray.smoothing.noise import keyed_batches
from drs_ray.smoothing.partition import Partition


@dataclass(frozen=True)
class Sampler:
    """How one sub-image is smoothed: the partition, the noise, and the slices of forward passes.

    sigma is in pixel units; batch and block belong to the run's identity (they fix the slices, see `keyed_batches`).
    """

    partition: Partition
    sigma: float
    block: int
    batch: int
    device: torch.device
    law: LawName = "lattice"

    @cached_property
    def noise(self) -> NoiseLaw:
        """The law at this sigma, on this device."""
        return make_law(self.law, self.sigma, self.device)


@torch.inference_mode()
def count_votes(
    classifier: torch.nn.Module,
    image: Tensor,
    sampler: Sampler,
    key: NoiseKey,
    first_sample: int,
    samples: int,
    num_classes: int,
) -> NDArray[np.int64]:
    """How often the base classifier gives each class to noisy copies of one sub-image.

    A pure function of its arguments: if [first_sample, first_sample + samples) is cut at multiples of `sampler.block`,
    the votes of the pieces sum to the same votes. Memory is that of one batch (CUDA: one block of noise), not n images.

    Args:
        classifier: maps float32 [b, C, h, w] to logits [b, num_classes]; in eval mode, on `sampler.device`.
        image: float32 [C, H, W] in [0, 1], the whole image.
        sampler: how the sub-image is smoothed.
        key: key of the noise, which names the sub-image.
        first_sample: first sample number.
        samples: number of noisy copies n.
        num_classes: number of classes.

    Returns:
        int64 [num_classes], summing to `samples`.

    Raises:
        ClassifierError: the classifier fails; its logits have another shape, NaN, +inf, or a sample with only -inf.
        DataError: an image that the noise law cannot take.
    """
    values = sampler.noise.prepare(sampler.partition.extract(image, key.sub_image), key).to(sampler.device)
    votes = torch.zeros(num_classes, dtype=torch.int64, device=sampler.device)
    finite = torch.ones((), dtype=torch.bool, device=sampler.device)
    one = torch.ones((), dtype=torch.int64, device=sampler.device)
    for drawn in keyed_batches(
        sampler.noise.distribution,
        key,
        first_sample,
        samples,
        values_shape=(values.shape[0], values.shape[1]),
        block=sampler.block,
        batch=sampler.batch,
        device=sampler.device,
    ):
        noisy = sampler.partition.arrange(sampler.noise.add(values, drawn), key.sub_image)
        try:
            logits = classifier(noisy.contiguous(memory_format=torch.channels_last))
        except Exception as error:  # the user's module may raise anything
            raise ClassifierError(
                f"sub-image {key.sub_image}: the classifier failed on image {key.image_id} ({type(error).__name__}: "
                f"{' '.join(str(error).split())[:200]}); correct it, or lower engine.batch if memory ran out"
            ) from error
        if logits.shape != (len(noisy), num_classes):  # scatter_add_ beyond the end would break the CUDA context
            raise ClassifierError(
                f"sub-image {key.sub_image}: logits must be [{len(noisy)}, {num_classes}] (batch, classes), "
                f"got {list(logits.shape)}; check the classifier's number of classes"
            )
        finite &= torch.isfinite(logits.amax(dim=1)).all()  # -inf may mask classes: it never wins over a finite logit
        winners = logits.argmax(dim=1)
        votes.scatter_add_(0, winners, one.expand_as(winners))
    if not bool(finite):  # one synchronisation per image, not per batch
        raise ClassifierError(
            f"sub-image {key.sub_image}: NaN or infinite logits for image {key.image_id} "
            f"(samples {first_sample}..{first_sample + samples - 1}, {key.phase}); "
            "the classifier overflows under noise: check the checkpoint and its normalisation"
        )
    return votes.cpu().numpy()
