"""Computes units with `count_votes`, in Ray workers and in the driver's process."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch

from drs_ray.config import RunConfig
from drs_ray.counts.encoding import CountsRow, encode_part
from drs_ray.counts.plan import Draw, Unit
from drs_ray.counts.run_record import RunRecord
from drs_ray.data.datasets import Dataset, open_dataset
from drs_ray.engine.outcome import Measured, Outcome
from drs_ray.engine.part_writer import PartWriter
from drs_ray.errors import ClassifierError, DataError, DeviceLostError
from drs_ray.models.building import brief
from drs_ray.models.check import FirstBatch, same_probe, tolerance_of
from drs_ray.models.factory import BaseClassifier, load_classifier
from drs_ray.models.inference import voting_classifier
from drs_ray.models.torch_state import device_is_lost, out_of_memory
from drs_ray.smoothing.keys import NoiseKey
from drs_ray.smoothing.partition import Partition, partition_of
from drs_ray.smoothing.voting import Sampler, count_votes
from drs_ray.storage import Store

_MOST_DRAWS = 5000


@contextmanager
def device_errors() -> Iterator[None]:
    """Turn errors of a GPU, in whatever call they come up, into one of drs-ray's.

    Raises:
        DeviceLostError: the GPU no longer works in this process. ClassifierError: its memory ran out.
    """
    try:
        yield
    except Exception as error:
        if device_is_lost():
            raise DeviceLostError(
                f"the GPU no longer works in this process ({brief(error)}); look at the GPU (nvidia-smi, dmesg), "
                "then run the same command to resume"
            ) from error
        if (memory := out_of_memory(error)) is not None:
            raise ClassifierError(
                f"the GPU's memory ran out ({brief(memory)}); lower engine.batch or noise.block, or give each worker "
                "more of a GPU (engine.gpus_per_worker)"
            ) from error
        raise


class UnitRunner:
    """Computes units of one sub-image on one device.

    dataset: the run's data set. classifier: the classifier that votes, on its device. sampler: of the noisy copies.
    """

    @device_errors()
    def __init__(self, record: RunRecord, sub_image: int, dataset: Dataset | None = None) -> None:
        """Load the data set and the classifier of `sub_image`.

        Args:
            record: the run.
            sub_image: index of the sub-image.
            dataset: data set of another runner of this run in this process; None: load it.

        Raises:
            DataError, ClassifierError: data or classifier are missing, or differ from those that the driver loaded.
        """
        config = record.config
        self._record = record
        self._writer = PartWriter(config.engine.store_seconds)
        self.dataset = _dataset_of(record) if dataset is None else dataset
        partition = partition_of(config.partition, record.dataset.image_shape)
        classifier = classifier_of(
            config, partition, sub_image, record.dataset.image_shape, self._classes, record.dataset_name
        )
        if classifier.digest != record.classifier_digests[sub_image]:
            raise ClassifierError(
                f"sub-image {sub_image}: this worker loaded weights {classifier.digest[:12]}, the run has "
                f"{record.classifier_digests[sub_image][:12]}; give every node the same checkpoint"
            )
        if record.classifier_probes and not same_probe(classifier.probe, record.classifier_probes[sub_image]):
            raise ClassifierError(
                f"sub-image {sub_image}: the weights are the run's, but not the answers to fixed inputs: the code of "
                f"{config.classifiers[sub_image].architecture} has changed; restore it, or start a new run"
            )
        self._device = torch.device(config.engine.device)
        self._has_voted = False
        self.classifier = voting_classifier(
            classifier.module,
            precision=record.precision,
            compile=config.engine.compile is True,
            device=self._device,
            batch=record.batch,
            image_shape=partition.layout_shape(sub_image, record.dataset.image_shape[0]),
            num_classes=self._classes,
            sub_image=sub_image,
        )
        sigma, block, law = config.sigmas[sub_image], config.noise.block, config.noise.law
        self.sampler = Sampler(partition, sigma, block, record.batch, self._device, law)

    @property
    def _classes(self) -> int:
        return self._record.dataset.num_classes

    def count(self, unit: Unit) -> Iterator[CountsRow]:
        """The unit's rows: a function of the run's identity and the unit only."""
        seed = self._record.config.noise.seed
        for position in unit.positions:
            image_id = self._record.image_ids[position]
            image = torch.from_numpy(self.dataset.image(image_id))
            label = self.dataset.label(image_id)
            for draw in unit.draws:
                key = NoiseKey(seed, image_id, unit.sub_image, draw.phase, self._record.dataset.digest)
                ours = self.classifier
                voting = ours.module if self._has_voted else FirstBatch(ours.module, ours.plain)
                votes = count_votes(voting, image, self.sampler, key, draw.first_sample, draw.samples, self._classes)
                if isinstance(voting, FirstBatch):
                    tolerance = tolerance_of(self._record.precision, self._device.type)
                    voting.check(self._classes, unit.sub_image, tolerance)
                    self._has_voted = True
                yield CountsRow(
                    image_id, label, unit.sub_image, draw.phase, draw.stage, draw.first_sample, draw.samples, votes
                )

    @device_errors()
    def run(self, unit: Unit, store: Store) -> Outcome:
        """Compute the unit and store its part in one piece. The outcome contains the part."""
        started = time.perf_counter()
        part = encode_part(self.count(unit), self._record.run_id, unit.key)
        counted = time.perf_counter()
        retries = self._writer.put(store, unit.key, part)
        return Outcome(counted - started, time.perf_counter() - counted, part, retries)

    @device_errors()
    def measure(self, unit: Unit, seconds: float) -> Measured:
        """Draw votes of the unit's first image for `seconds`, after two batches of warm-up.

        Raises:
            DrsError: the classifier fails on the image.
        """
        batch, block = self.sampler.batch, self._record.config.noise.block
        self._draw(unit, batch, 0.0)
        once = self._draw(unit, batch, 0.0).seconds
        return self._draw(unit, block if once * block / batch <= seconds else batch, seconds)

    def _draw(self, unit: Unit, size: int, seconds: float) -> Measured:
        """Draw `size` samples repeatedly, at least once, until `seconds` are over."""
        draws = tuple(Draw("estimation", 0, number * size, size) for number in range(_MOST_DRAWS))
        rows, classes, started = 0, 0, time.perf_counter()
        for row in self.count(replace(unit, positions=unit.positions[:1], draws=draws)):
            rows += 1
            classes += int(np.count_nonzero(row.votes))
            if time.perf_counter() - started >= seconds:
                break
        return Measured(time.perf_counter() - started, rows * size, classes / rows)


def _dataset_of(record: RunRecord) -> Dataset:
    dataset = open_dataset(record.config.dataset, download=False)
    if dataset.digest != record.dataset.digest:
        raise DataError(
            f"data set {record.config.dataset.name}: what this worker reads has digest {dataset.digest[:12]}, the run "
            f"has {record.dataset.digest[:12]}; give every node the same data"
        )
    return dataset


def classifier_of(
    config: RunConfig,
    partition: Partition,
    sub_image: int,
    image_shape: tuple[int, int, int],
    num_classes: int,
    dataset: str,
    classes: Sequence[str] | None = None,
) -> BaseClassifier:
    """Load and check the base classifier of one sub-image, on the CPU."""
    chosen = config.classifiers[sub_image]
    return load_classifier(
        architecture=chosen.architecture,
        arguments=chosen.arguments,
        checkpoint=chosen.checkpoint,
        entry=chosen.entry,
        sub_image=sub_image,
        partition=config.partition.label,
        layout=config.partition.layout,
        sigma=chosen.sigma,
        image_shape=partition.layout_shape(sub_image, image_shape[0]),
        num_classes=num_classes,
        dataset=dataset,
        classes=classes,
        pixels=chosen.pixels,
        denoiser=chosen.denoiser,
        members=chosen.members,
    )
