"""The training of one classifier or denoiser as a job that can be sent to a worker."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from drs_ray.config import ClassifierConfig, DenoiserConfig, RunConfig
from drs_ray.data.datasets import Dataset, open_dataset, select_image_ids
from drs_ray.data.split import Subset
from drs_ray.errors import ConfigError, DataError, counted, sub_images_text
from drs_ray.models.building import build_module
from drs_ray.models.denoisers import new_denoiser
from drs_ray.models.factory import BaseClassifier, load_classifier
from drs_ray.models.pixel_convention import check_channels
from drs_ray.smoothing.partition import make_partition, partition_of
from drs_ray.training.denoised import Denoising
from drs_ray.training.images import in_memory_if_small
from drs_ray.training.loop import EpochDone, Place, Report, derived_seed, train_network
from drs_ray.training.state import TrainingState

Send = Callable[[Report, TrainingState | None], None]


@dataclass(frozen=True)
class TrainingJob:
    """The training of one network of a run's config. digest: of the training split.

    The method decides what is trained: the classifier, or the denoiser before it.
    sub_images: those that the network is for, one of `config.networks`.
    """

    config: RunConfig
    sub_images: tuple[int, ...]
    digest: str

    @property
    def name(self) -> str:
        """Its sub-images, for messages."""
        return sub_images_text(self.sub_images)

    @property
    def sub_image(self) -> int:
        """The first of its sub-images."""
        return self.sub_images[0]

    @property
    def classifier(self) -> ClassifierConfig:
        """The section of its first sub-image; what the network depends on is the same in those of the others."""
        return self.config.classifiers[self.sub_image]

    @property
    def denoiser(self) -> DenoiserConfig | None:
        """The section of the denoiser if the denoiser is trained, or None."""
        return self.classifier.denoiser if self.config.training.of_denoisers else None

    @property
    def sigma(self) -> float:
        """Standard deviation of the noise in training, pixel units."""
        return 0.0 if self.config.training.method == "clean" else self.classifier.sigma

    @property
    def start_from(self) -> str | None:
        """The checkpoint from which the training starts, or None."""
        named = self.config.training.start_from
        return None if named is None else named.replace("{sub_image}", str(self.sub_image))

    @property
    def seed(self) -> int:
        """The network's own seed, so that its weights do not depend on which other networks are trained."""
        return derived_seed(self.config.training.seed, self.sub_image)

    def layout_shape(self, dataset: Dataset) -> tuple[int, int, int]:
        """(C, h, w) of the layout of a sub-image.

        Raises:
            ConfigError: sub-images of one network have different shapes, or, if it sees them together, different
                numbers of pixels.
        """
        partition = partition_of(self.config.partition, dataset.image_shape)
        shapes = [partition.layout_shape(k, dataset.image_shape[0]) for k in self.sub_images]
        if len(set(shapes)) > 1:
            sizes = ", ".join("x".join(map(str, shape[1:])) for shape in shapes)
            raise ConfigError(
                f"classifiers: {self.name} name one checkpoint, so their layouts must have one size, got {sizes}; "
                "name a checkpoint for each, or set partition.layout to masked"
            )
        pixels = [len(partition.pixels(k)) for k in self.sub_images]
        if self.config.training.sees_all_sub_images and len(set(pixels)) > 1:
            raise ConfigError(
                f"training.consistency.across: {self.name} must have equally many pixels, got "
                f"{', '.join(map(str, pixels))}; set it to false, or choose another partition"
            )
        return shapes[0]

    def build(self, dataset: Dataset) -> nn.Module:
        """The untrained module, equal for equal configs. A denoiser has the weights of `start_from`."""
        classifier, shape = self.classifier, self.layout_shape(dataset)
        # Layers draw their initial weights from torch's global generator: seed it, and restore its state afterwards.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self.seed)
            if self.denoiser is not None:
                return new_denoiser(self.denoiser, self.sigma, shape, self.sub_image, self.start_from)
            check_channels(classifier.pixels, shape[0], self.sub_image)
            return build_module(
                classifier.architecture, classifier.arguments, shape, dataset.num_classes, classifier.pixels
            )

    def classifier_behind(self, dataset: Dataset) -> BaseClassifier | None:
        """The finished classifier behind the denoiser, on the CPU, for the method `stability`; None for other methods.

        Raises:
            ClassifierError: it cannot be loaded.
        """
        if self.config.training.method != "stability":
            return None
        loaded = [
            load_classifier(
                **{name: value for name, value in self.classifier if name != "denoiser"},
                sub_image=sub_image,
                partition=self.config.partition.label,
                layout=self.config.partition.layout,
                image_shape=self.layout_shape(dataset),
                num_classes=dataset.num_classes,
                classes=dataset.classes,
                denoised=True,
            )
            for sub_image in self.sub_images  # one classifier, which must be for all of them
        ]
        return loaded[0]

    def train(self, dataset: Dataset, place: Place, start: TrainingState, on_report: Callable[[Report], None]) -> None:
        """Train from `start` to the last epoch, and report every epoch.

        Raises:
            ClassifierError, DataError: as `train_network`.
        """
        partition, sub_images = partition_of(self.config.partition, dataset.image_shape), self.sub_images
        whole = self.config.partition.layout != "packed"  # of full size: a denoiser returns the whole image
        denoising = None
        if self.denoiser is not None:
            behind = self.classifier_behind(dataset)
            denoising = Denoising(
                None if whole else partition, None if behind is None else behind.module.to(place.device)
            )
        elif self.config.training.method == "clean" and whole:
            partition, sub_images = make_partition("none", partition.height, partition.width, "packed"), (0,)
        train_network(
            self.build(dataset),
            dataset,
            partition,
            sub_images,
            self.sigma,
            self.config.training,
            seed=self.seed,
            place=place,
            start=start,
            denoising=denoising,
            on_report=on_report,
        )

    def work(self, device: str, rank: int, workers: int, start: TrainingState, send: Send) -> None:
        """`train` on one of several workers, each of which reads the data (`engine.ray.training_group.GroupJob`).

        Raises:
            DataError: the data is missing or differs from the driver's. Others: as `train`.
        """
        dataset = training_split(self.config)
        if dataset.digest != self.digest:
            raise DataError(
                f"data set {dataset.name}: what this worker reads has digest {dataset.digest[:12]}, the driver's has "
                f"{self.digest[:12]}; give every node the same data"
            )
        self.train(
            in_memory_if_small(dataset),
            Place(device, rank, workers),
            start,
            lambda report: send(report, report.state if isinstance(report, EpochDone) else None),
        )


def training_split(config: RunConfig) -> Dataset:
    """The training split of a config, without its held-out images.

    Raises:
        ConfigError, DataError: as `load_dataset`.
    """
    dataset = open_dataset(config.dataset, config.training.split)
    held = config.training.hold_out
    if held is None:
        return dataset
    held_out = set(select_image_ids(len(dataset), held.start, held.stop, held.skip, held.ids, "training.hold_out"))
    if len(held_out) == len(dataset):
        raise ConfigError(
            f"training.hold_out: holds out all of the split {dataset.split}, {counted(len(dataset), 'image')}; "
            "set skip, or stop"
        )
    return Subset(dataset, [image_id for image_id in range(len(dataset)) if image_id not in held_out])
