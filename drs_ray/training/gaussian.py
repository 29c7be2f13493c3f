"""Training one sub-image classifier under Gaussian noise, as Cohen et al. 2019 do: seeded, without global state."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from drs_ray.errors import ClassifierError
from drs_ray.smoothing.partition import Partition

EpochReport = Callable[[int, int, float, float], None]
"""Called after every epoch with: epoch (from 1), epochs, mean loss, accuracy on the noisy, augmented images."""

WARM_UP = 0.2
"""Share of the steps in which the learning rate rises; then it falls to 0 along a cosine."""


def train_classifier(
    module: nn.Module,
    images: Tensor,
    labels: Tensor,
    partition: Partition,
    sub_image: int,
    *,
    sigma: float,
    epochs: int,
    batch: int,
    learning_rate: float,
    weight_decay: float = 0.0,
    label_smoothing: float = 0.0,
    shift: int = 0,
    flip: bool = False,
    seed: int = 0,
    device: str = "cpu",
    on_epoch: EpochReport | None = None,
) -> None:
    """Train `module` in place on one sub-image of noisy images; it is left on `device` in eval mode.

    Images are augmented whole, then the sub-image is taken and noise is added to its own pixels alone: empty cells of
    its layout stay exactly 0, as they are when votes are counted. Every image gets new noise in every epoch. Equal
    arguments give equal weights on the same device, library versions and number of threads.

    Args:
        module: float32 [n, C, h, w], the layout of the sub-image -> logits [n, classes].
        images: float32 [N, C, H, W] in [0, 1], whole images.
        labels: int64 [N].
        partition: how images are split; `sub_image` is the part that this classifier sees.
        sub_image: index of the part, 0 .. K - 1.
        sigma: noise standard deviation in pixel units.
        epochs: passes over the images.
        batch: images per step.
        learning_rate: peak rate of AdamW, with a linear warm-up and a cosine to 0.
        weight_decay: of AdamW.
        label_smoothing: share of the target that is spread over all classes, in [0, 1).
        shift: augmentation by random shifts of up to so many pixels, filled with 0.
        flip: augmentation by random horizontal flips.
        seed: of the order, the augmentation and the noise (not of the initial weights, which `module` has already).
        device: torch device.
        on_epoch: told after every epoch.

    Raises:
        ClassifierError: if the loss stops being finite.
    """
    generator = torch.Generator(device=device).manual_seed(seed)
    images, labels = images.to(device), labels.to(device)
    module.to(device).train()
    optimizer = torch.optim.AdamW(module.parameters(), lr=learning_rate, weight_decay=weight_decay, fused=True)
    count = len(images)
    steps = epochs * math.ceil(count / batch)
    step = 0
    for epoch in range(1, epochs + 1):
        total, correct = torch.zeros((), device=device), torch.zeros((), device=device)
        order = torch.randperm(count, generator=generator, device=device)
        for start in range(0, count, batch):
            chosen = order[start : start + batch]
            for group in optimizer.param_groups:
                group["lr"] = learning_rate * schedule(step / steps)
            inputs = noisy_sub_images(
                augment(images[chosen], shift, flip, generator), partition, sub_image, sigma, generator
            )
            logits = module(inputs)
            loss = functional.cross_entropy(logits, labels[chosen], label_smoothing=label_smoothing)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            total += loss.detach() * len(chosen)
            correct += (logits.detach().argmax(1) == labels[chosen]).sum()
            step += 1
        mean_loss = float(total) / count
        if not math.isfinite(mean_loss):
            raise ClassifierError(
                f"sub-image {sub_image}: training diverged in epoch {epoch} (loss {mean_loss}); "
                f"lower training.learning_rate, which is {learning_rate}"
            )
        if on_epoch is not None:
            on_epoch(epoch, epochs, mean_loss, float(correct) / count)
    module.eval()


def noisy_sub_images(
    images: Tensor, partition: Partition, sub_image: int, sigma: float, generator: torch.Generator
) -> Tensor:
    """Whole images [n, C, H, W] -> inputs of one sub-image's classifier [n, C, h, w], noise on its own pixels alone."""
    values = partition.extract(images, sub_image)
    noise = torch.randn(values.shape, generator=generator, device=values.device)
    return partition.arrange(values + sigma * noise, sub_image)


def augment(images: Tensor, shift: int, flip: bool, generator: torch.Generator) -> Tensor:
    """Shift each image by up to `shift` pixels in both directions (filled with 0) and flip half of them, at random."""
    count, channels, height, width = images.shape
    device = images.device
    if shift:
        offsets = torch.randint(0, 2 * shift + 1, (2, count, 1), generator=generator, device=device)
        rows = (torch.arange(height, device=device) + offsets[0])[:, None, :, None]
        columns = (torch.arange(width, device=device) + offsets[1])[:, None, None, :]
        padded = functional.pad(images, (shift, shift, shift, shift))
        index = torch.arange(count, device=device)[:, None, None, None]
        images = padded[index, torch.arange(channels, device=device)[None, :, None, None], rows, columns]
    if flip:
        chosen = torch.rand(count, generator=generator, device=device) < 0.5
        images = torch.where(chosen[:, None, None, None], images.flip(-1), images)
    return images


def schedule(progress: float) -> float:
    """Factor on the learning rate, in [0, 1], when a share `progress` in [0, 1) of the steps is done."""
    if progress < WARM_UP:
        return (progress + 0.01) / (WARM_UP + 0.01)
    return 0.5 * (1 + math.cos(math.pi * (progress - WARM_UP) / (1 - WARM_UP)))
