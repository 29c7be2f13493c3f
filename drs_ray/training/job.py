"""The training of one sub-image's classifier as a job that can be sent to a worker."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from drs_ray.config import RunConfig
from drs_ray.data.datasets import Dataset, open_dataset, select_image_ids
from drs_ray.data.split import Subset
from drs_ray.errors import ConfigError, DataError, counted
from drs_ray.models.building import build_module
from drs_ray.models.pixel_convention import check_channels
from drs_ray.smoothing.partition import partition_of
from drs_ray.training.images import held_if_small
from drs_ray.training.loop import EpochDone, Place, Report, derived_seed, train_classifier
from drs_ray.training.state import TrainingState

Send = Callable[[Report, TrainingState | None], None]


@dataclass(frozen=True)
class TrainingJob:
    """The training of one sub-image of a run's config. digest: of the training split."""

    config: RunConfig
    sub_image: int
    digest: str

    @property
    def seed(self) -> int:
        """The sub-image's own seed, so that its weights do not depend on which other sub-images are trained."""
        return derived_seed(self.config.training.seed, self.sub_image)

    def layout_shape(self, dataset: Dataset) -> tuple[int, int, int]:
        """(C, h, w) of the sub-image's layout."""
        partition = partition_of(self.config.partition, dataset.image_shape)
        return partition.layout_shape(self.sub_image, dataset.image_shape[0])

    def build(self, dataset: Dataset) -> nn.Module:
        """The untrained module, equal for equal configs."""
        classifier = self.config.classifiers[self.sub_image]
        shape = self.layout_shape(dataset)
        check_channels(classifier.pixels, shape[0], self.sub_image)
        # Layers draw their initial weights from torch's global generator: seed it, and restore its state afterwards.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self.seed)
            return build_module(
                classifier.architecture, classifier.arguments, shape, dataset.num_classes, classifier.pixels
            )

    def train(self, dataset: Dataset, place: Place, start: TrainingState, on_report: Callable[[Report], None]) -> None:
        """Train from `start` to the last epoch, and report every epoch.

        Raises:
            ClassifierError, DataError: as `train_classifier`.
        """
        train_classifier(
            self.build(dataset),
            dataset,
            partition_of(self.config.partition, dataset.image_shape),
            self.sub_image,
            self.config.sigmas[self.sub_image],
            self.config.training,
            seed=self.seed,
            place=place,
            start=start,
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
            held_if_small(dataset),
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
