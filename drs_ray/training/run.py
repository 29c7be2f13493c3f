"""`drs-ray train`: trains the sub-image classifiers of a config, each on its own, and writes their checkpoints."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from drs_ray.config import RunConfig
from drs_ray.data.datasets import load_dataset
from drs_ray.errors import ConfigError
from drs_ray.models.building import build_module
from drs_ray.models.checkpoints import CheckpointMetadata, save_checkpoint
from drs_ray.models.factory import check_classifier
from drs_ray.smoothing.partition import make_partition
from drs_ray.training.gaussian import train_classifier

MEMORY_GIB = 8
"""Larger splits are refused, not killed for memory half-way."""

TrainingReport = Callable[[int, int, int, float, float], None]
"""Called after every epoch with: sub-image, epoch (from 1), epochs, mean loss, accuracy under noise."""


def train_run(
    config: RunConfig,
    *,
    sub_images: Sequence[int] | None = None,
    on_progress: TrainingReport | None = None,
) -> list[Path]:
    """Train classifiers of a config on `dataset` with split `training.split`, and write `classifiers[k].checkpoint`.

    Args:
        config: the run. A checkpoint that exists is replaced.
        sub_images: which ones to train; None: all. What one learns does not depend on which others are trained.
        on_progress: told after every epoch.

    Returns:
        The files written, in order of `sub_images`.

    Raises:
        ConfigError: for a checkpoint that is not a local .safetensors path of its own, or cannot be written.
        DataError: if the training split is not there.
        ClassifierError: if an architecture cannot be built, or training diverges.
    """
    chosen = tuple(range(config.partition.sub_images)) if sub_images is None else tuple(sub_images)
    files = [_checkpoint_file(config, sub_image) for sub_image in chosen]
    training = config.training
    dataset = load_dataset(
        config.dataset.name,
        root=config.dataset.root,
        split=training.split,
        download=config.dataset.download,
        image_size=config.dataset.image_size,
        endpoint_url=config.dataset.endpoint_url,
    )
    channels, height, width = dataset.image_shape
    gib = len(dataset) * channels * height * width * 4 / 2**30
    if gib > MEMORY_GIB:
        raise ConfigError(
            f"training.split: training keeps the whole split in memory, at most {MEMORY_GIB} GiB; {dataset.name} "
            f"({training.split}) would take {gib:.0f} GiB; train these classifiers elsewhere and name their checkpoints"
        )
    cut = config.partition
    partition = make_partition(cut.name, height, width, cut.layout, cut.interleave)
    ids = range(len(dataset))
    images, labels = torch.from_numpy(dataset.images(ids)), torch.from_numpy(np.asarray(dataset.labels(ids)))
    device = config.engine.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    for sub_image, file in zip(chosen, files, strict=True):
        classifier = config.classifiers[sub_image]
        shape = partition.layout_shape(sub_image, channels)
        seed = _seed(training.seed, sub_image)
        # Layers draw their initial weights from torch's global generator: seed a copy of it, and put the old one back.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            module = build_module(
                classifier.architecture, classifier.arguments, shape, dataset.num_classes, classifier.pixels
            )
        train_classifier(
            module,
            images,
            labels,
            partition,
            sub_image,
            sigma=classifier.sigma,
            epochs=training.epochs,
            batch=training.batch,
            learning_rate=training.learning_rate,
            weight_decay=training.weight_decay,
            label_smoothing=training.label_smoothing,
            shift=training.shift,
            flip=training.flip,
            seed=seed,
            device=device,
            on_epoch=None if on_progress is None else _for_sub_image(on_progress, sub_image),
        )
        module.cpu()
        check_classifier(module, shape, dataset.num_classes, sub_image)
        metadata = CheckpointMetadata(
            architecture=classifier.architecture,
            arguments=classifier.arguments,
            pixels={} if classifier.pixels is None else classifier.pixels.record,
            partition=config.partition.label,
            layout=config.partition.layout,
            sub_image=sub_image,
            sigma=classifier.sigma,
            num_classes=dataset.num_classes,
            image_shape=shape,
            dataset=dataset.name,
            training=training.model_dump_json(),
        )
        save_checkpoint(file, module, metadata)
    return files


def _checkpoint_file(config: RunConfig, sub_image: int) -> Path:
    """Where a classifier is to be written; all that can be wrong with it is said before hours of training."""
    if not 0 <= sub_image < len(config.classifiers):
        raise ConfigError(
            f"sub_images: partition {config.partition.label} has the sub-images 0..{len(config.classifiers) - 1}, "
            f"got {sub_image}"
        )
    key = f"classifiers.{sub_image}.checkpoint"
    checkpoint = config.classifiers[sub_image].checkpoint
    if checkpoint is None or "://" in checkpoint or not checkpoint.endswith(".safetensors"):
        raise ConfigError(
            f"{key}: training writes a local .safetensors file, got {checkpoint}; "
            f"give a path such as checkpoints/{config.partition.label}-{sub_image}.safetensors"
        )
    if config.classifiers[sub_image].denoiser is not None:
        raise ConfigError(
            f"classifiers.{sub_image}.denoiser: training is without one; remove it, or bring a classifier "
            "that was trained on denoised sub-images"
        )
    if sum(other.checkpoint == checkpoint for other in config.classifiers) > 1:
        raise ConfigError(f"{key}: every sub-image needs a file of its own, got {checkpoint} twice; rename one")
    file = Path(checkpoint).expanduser()
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{key}: directory {file.parent} cannot be created ({error.strerror})") from error
    if not os.access(file.parent, os.W_OK) or file.is_dir():
        raise ConfigError(f"{key}: {file} cannot be written; name a file in a directory that you may write to")
    return file


def _seed(seed: int, sub_image: int) -> int:
    """A seed for each sub-image's classifier: hashed, so that seeds 0, 1, ... do not repeat each other's streams."""
    return int.from_bytes(hashlib.sha256(f"training/{seed}/{sub_image}".encode()).digest()[:8], "big") >> 1


def _for_sub_image(report: TrainingReport, sub_image: int) -> Callable[[int, int, float, float], None]:
    def on_epoch(epoch: int, epochs: int, loss: float, accuracy: float) -> None:
        report(sub_image, epoch, epochs, loss, accuracy)

    return on_epoch
