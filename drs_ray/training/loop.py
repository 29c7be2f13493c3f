"""The training loop of one network: seeded, resumable after any epoch, on one or several workers."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from drs_ray.config import TrainingConfig
from drs_ray.data.datasets import Dataset
from drs_ray.errors import ClassifierError, sub_images_text
from drs_ray.models.precision import has_bfloat16
from drs_ray.smoothing.partition import Partition
from drs_ray.training.denoised import Denoising
from drs_ray.training.images import augment, read_batches
from drs_ray.training.methods import loss_of
from drs_ray.training.optimization import make_optimizer, optimizer_tensors, rate, restore_optimizer
from drs_ray.training.state import TrainingState, weights_of
from drs_ray.training.trainee import Trainee


@dataclass(frozen=True)
class Place:
    """The torch device of a loop, and its rank among the workers that train one network together.

    With several workers, torch.distributed is initialized, and every worker runs the loop with the same arguments.
    """

    device: str = "cpu"
    rank: int = 0
    workers: int = 1


@dataclass(frozen=True)
class ImagesDone:
    """Report at the start of an epoch (from 1) and about once a second: `images` of `of` images are done."""

    epoch: int
    images: int
    of: int


@dataclass(frozen=True)
class EpochDone:
    """Report after an epoch (from 1): mean loss, and accuracy on augmented images under the method's noise.

    accuracy: None for a denoiser without a classifier.
    state: after every `training.checkpoint_every` epochs and after the last one; None after other epochs.
    """

    epoch: int
    loss: float
    accuracy: float | None
    state: TrainingState | None


Report = ImagesDone | EpochDone | str
"""A report of the first worker; a string is a warning."""

SECONDS_BETWEEN_REPORTS = 1.0
"""Time between two reports of the images done in an epoch."""


def train_network(
    module: nn.Module,
    dataset: Dataset,
    partition: Partition,
    sub_images: Sequence[int],
    sigma: float,
    training: TrainingConfig,
    *,
    seed: int = 0,
    place: Place = Place(),
    start: TrainingState | None = None,
    denoising: Denoising | None = None,
    on_report: Callable[[Report], None] | None = None,
) -> None:
    """Train `module` in place on sub-images of noisy images. It stays on the place's device, in eval mode.

    Whole images are augmented. Then the sub-image is taken and noise is added only to its own pixels: empty cells of
    its layout stay exactly 0, as they are when votes are counted. Every image gets new noise in every epoch. Several
    sub-images take turns from step to step, so that in an epoch each image is seen in one of them, at random. With
    `TrainingConfig.sees_all_sub_images` each step sees its images in all of them instead. Equal arguments give equal
    weights on the same CPU, library versions, threads and number of workers, also after an interruption and a restart
    from a state; on a GPU, up to the order in which its kernels add. Mixed precision `auto` is decided at the start of
    the training, and the decision is part of its states.

    Args:
        module: float32 [n, C, h, w], the layout of the sub-image -> logits [n, classes], or of a denoiser the same
            shape.
        dataset: the images to train on.
        partition: partition of the images into sub-images.
        sub_images: indices of the network's sub-images, 0 .. K - 1, whose layouts have one shape.
        sigma: noise standard deviation in pixel units.
        training: method, optimizer, schedule, augmentation, epochs.
        seed: seed of the order, the augmentation, the noise and the module's own random numbers (not of the initial
            weights, which the module has already).
        place: the device, and the worker's rank in a group.
        start: the state to start from, instead of the module's own weights.
        denoising: what the training of a denoiser needs; None for a classifier.
        on_report: called with reports, in the first worker.

    Raises:
        ClassifierError: if the loss stops being finite. DataError: if an image cannot be read.
    """
    on_report = on_report if on_report is not None and place.rank == 0 else lambda report: None
    generator = torch.Generator(device=place.device).manual_seed(seed)
    channels = dataset.image_shape[0]
    layout = _memory_format(module.to(place.device), partition.layout_shape(sub_images[0], channels), place.device)
    module.to(memory_format=layout).train()
    optimizer = make_optimizer(module, training)
    bfloat16 = None
    if start is not None:
        module.load_state_dict(start.weights)
        bfloat16 = start.bfloat16
        if start.optimizer:
            restore_optimizer(optimizer, start.optimizer)
        if start.generator is not None and len(start.generator) == len(generator.get_state()):
            generator.set_state(start.generator)
        elif start.generator is not None:  # of another kind of device; a group's is seeded again in every epoch
            generator.manual_seed(derived_seed(seed, start.epoch))
            if place.workers == 1:
                on_report(
                    f"{sub_images_text(sub_images)}: the state is of another kind of device than {place.device}: the "
                    "order and noise of the remaining epochs differ from those of an undisturbed training; go on there "
                    "to keep them"
                )
    if bfloat16 is None:
        bfloat16 = _in_bfloat16(training, place)
    if bfloat16 and not has_bfloat16(place.device):
        on_report(
            f"{sub_images_text(sub_images)}: computes in bfloat16, for which {place.device} has no units: slower than "
            "float32; training.mixed_precision: auto, from the start, takes what is fast"
        )
    network = module
    if place.workers > 1:
        on_gpu = place.device.startswith("cuda")
        network = DistributedDataParallel(module, device_ids=[torch.device(place.device)] if on_gpu else None)
    turns = [sub_images] if training.sees_all_sub_images else [[sub_image] for sub_image in sub_images]
    trainees = [Trainee(module, partition, turn, network, layout) for turn in turns]
    loss_function = loss_of(training, sigma, denoising)

    def noise(values: Tensor) -> Tensor:
        return sigma * torch.randn(values.shape, generator=generator, device=values.device)

    steps = training.epochs * math.ceil(len(dataset) / training.batch)
    step = (start.epoch if start is not None else 0) * (steps // training.epochs)
    for epoch in range(1 if start is None else start.epoch + 1, training.epochs + 1):
        total, correct = torch.zeros((), device=place.device), torch.zeros((), device=place.device)
        seen, reported, logits = 0, time.monotonic(), None
        on_report(ImagesDone(epoch, 0, len(dataset)))
        if place.workers > 1:  # an attack uses a worker's own statistics of batch norm, and a state has the first one's
            for buffer in module.buffers():
                distributed.broadcast(buffer, 0)
        with _seeded(derived_seed(seed, epoch, place.rank), place.device):
            batches = _batches(len(dataset), training.batch, generator, seed, epoch, place)
            for images, labels in read_batches(dataset, batches, training.loaders):
                labels = labels.to(place.device)
                for group in optimizer.param_groups:
                    group["lr"] = training.learning_rate * rate(training, step / steps)
                whole = augment(images.to(place.device), training.shift, training.flip, generator)
                trainee = trainees[step % len(trainees)]
                targets = labels if denoising is None else denoising.clean(whole, trainee.sub_images[0])
                with torch.autocast(place.device.partition(":")[0], torch.bfloat16, enabled=bfloat16):
                    loss, logits = loss_function(trainee, trainee.values(whole), targets, noise, epoch)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                total += loss.detach() * len(labels)
                if logits is not None:
                    correct += (logits.detach().argmax(1) == labels).sum()
                seen += len(labels)
                step += 1
                if time.monotonic() - reported >= SECONDS_BETWEEN_REPORTS:
                    reported = time.monotonic()
                    on_report(ImagesDone(epoch, min(seen * place.workers, len(dataset)), len(dataset)))
        mean_loss, accuracy = _means(total, correct, seen, place)
        if not math.isfinite(mean_loss):
            raise ClassifierError(
                f"{sub_images_text(sub_images)}: training diverged in epoch {epoch} (loss {mean_loss}); "
                f"lower training.learning_rate, which is {training.learning_rate}"
            )
        due = place.rank == 0 and (epoch % training.checkpoint_every == 0 or epoch == training.epochs)
        state = (
            TrainingState(epoch, weights_of(module), optimizer_tensors(optimizer), generator.get_state(), bfloat16)
            if due
            else None
        )
        on_report(EpochDone(epoch, mean_loss, None if logits is None else accuracy, state))
    module.eval()


def derived_seed(*parts: int) -> int:
    """A seed from several numbers by a hash, so that seeds 0, 1, ... do not repeat each other's streams."""
    text = "/".join(map(str, ("training", *parts)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def _batches(
    count: int, batch: int, generator: torch.Generator, seed: int, epoch: int, place: Place
) -> list[list[int]]:
    """Image ids of this worker's batches: all images once, in a random order that is equal for all workers.

    Several workers share every batch evenly, because their gradients are averaged: the order is filled up with its
    first images. Each worker has its own generator, which is seeded again in every epoch, so that its state need not be
    stored.
    """
    if place.workers == 1:
        order = torch.randperm(count, generator=generator, device=generator.device).tolist()
        return [order[first : first + batch] for first in range(0, count, batch)]
    generator.manual_seed(derived_seed(seed, epoch, place.rank, 1))
    order = torch.randperm(count, generator=torch.Generator().manual_seed(derived_seed(seed, epoch))).tolist()
    order = (order * place.workers)[: count + -count % place.workers]
    return [order[first : first + batch][place.rank :: place.workers] for first in range(0, len(order), batch)]


def _in_bfloat16(training: TrainingConfig, place: Place) -> bool:
    """Whether a new training computes in bfloat16: the setting; auto: if all of its workers have bfloat16 units."""
    if training.mixed_precision != "auto":
        return training.mixed_precision
    has_units = torch.tensor(float(has_bfloat16(place.device)), device=place.device)
    if place.workers > 1:
        distributed.all_reduce(has_units, distributed.ReduceOp.MIN)
    return bool(has_units)


def _memory_format(module: nn.Module, shape: tuple[int, int, int], device: str) -> torch.memory_format:
    """Channels last for colour images (faster as measured), unless the module fails with it, as a `view` may."""
    if shape[0] == 1:
        return torch.contiguous_format
    inputs = torch.zeros(1, *shape, device=device).contiguous(memory_format=torch.channels_last)
    try:
        with torch.no_grad(), _seeded(0, device):
            module.eval()(inputs)
    except Exception:  # user code; other errors will be raised in training
        return torch.contiguous_format
    return torch.channels_last


def _means(total: Tensor, correct: Tensor, seen: int, place: Place) -> tuple[float, float]:
    """Loss and accuracy per image, over all workers."""
    sums = torch.stack([total, correct, torch.full_like(total, seen)])
    if place.workers > 1:
        distributed.all_reduce(sums)
    return float(sums[0]) / float(sums[2]), float(sums[1]) / float(sums[2])


@contextmanager
def _seeded(seed: int, device: str) -> Iterator[None]:
    """Seed torch's global generators, from which dropout draws, and restore their states at the end."""
    gpus = [torch.cuda.current_device()] if device.startswith("cuda") else []
    with torch.random.fork_rng(devices=gpus):
        torch.default_generator.manual_seed(seed)
        if gpus:
            torch.cuda.manual_seed(seed)
        yield
