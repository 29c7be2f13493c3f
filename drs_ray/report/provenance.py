"""The provenance of a run, as names and values."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from drs_ray.certificates.rounding import exact_text
from drs_ray.config import DatasetConfig
from drs_ray.counts.run_record import RunRecord
from drs_ray.errors import counted
from drs_ray.published.imported_run import ImportedRecord


def provenance(record: RunRecord) -> Iterable[tuple[str, str]]:
    """The provenance of a run of drs-ray."""
    config = record.config
    yield "run id", record.run_id
    yield "created", record.created
    yield "data set", _dataset_text(record.dataset_name, config.dataset)
    yield "data digest", record.dataset.digest
    yield "images", _ids_text(record.image_ids)
    shape = " x ".join(str(size) for size in record.dataset.image_shape)
    yield "image shape", f"{shape} (channels x height x width), {counted(record.dataset.num_classes, 'class')}"
    partition = config.partition
    yield "partition", partition.label if partition.sub_images == 1 else f"{partition.label}, layout {partition.layout}"
    for index, (classifier, digest) in enumerate(zip(config.classifiers, record.classifier_digests, strict=True)):
        which = "classifier" if record.sub_images == 1 else f"classifier of sub-image {index}"
        checkpoints = [found for found in (classifier.checkpoint, *classifier.members) if found is not None]
        yield which, ", ".join([classifier.architecture, f"sigma {exact_text(classifier.sigma)}", *checkpoints])
        yield "weights digest", digest
    noise = config.noise
    yield "noise", f"{noise.law}, seed {noise.seed}, keyed in blocks of {counted(noise.block, 'sample')}"
    yield "forward passes", record.arithmetic
    yield "forward batch", "chosen by device" if config.engine.batch is None else f"{config.engine.batch:,}"
    yield "device", config.engine.device
    yield "hardware", record.hardware
    yield "software", ", ".join(f"{name} {version}" for name, version in sorted(record.software.items()))


def import_provenance(record: ImportedRecord) -> Iterable[tuple[str, str]]:
    """The provenance of an imported run."""
    yield "run id", record.run_id
    yield "imported", f"{record.created}, from {record.source}"
    yield "log digest", record.source_digest
    yield "data set", f"{record.dataset}, split {record.split}, as stated"
    yield "sigma, samples, alpha", "as stated at the import; there are no counts to check a radius against"
    for warning in record.warnings:
        yield "warning", warning


def _dataset_text(name: str, dataset: DatasetConfig) -> str:
    size = "" if dataset.image_size is None else f", resized to {dataset.image_size}"
    root = "" if dataset.root is None else f", from {dataset.root}"
    packed = "" if name == dataset.name else f", packed ({dataset.name})"
    return f"{name}, split {dataset.split}{size}{packed}{root}"


def _ids_text(ids: Sequence[int]) -> str:
    shown = ", ".join(str(index) for index in ids) if len(ids) <= 6 else f"{ids[0]}, {ids[1]}, {ids[2]}, ..., {ids[-1]}"
    return f"{len(ids):,} (ids {shown})"
