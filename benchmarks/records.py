"""Records of runs that never ran: what stored counts and certificates need beside them."""

from __future__ import annotations

from typing import Any

from drs_ray.config import RunConfig, parse_config
from drs_ray.counts.run_record import DatasetRecord, RunRecord, identity, run_id


def make_record(images: int, *, classes: int = 10, sigma: float = 0.5, **sections: Any) -> RunRecord:
    """A run of two sub-images of digits. sections: of the config, in place of the ones here."""
    classifier = {"architecture": "digits-cnn", "sigma": sigma}
    config = parse_config(
        {
            "dataset": {"name": "mnist5k"},
            "partition": {"name": "checkerboard"},
            "classifiers": [classifier, classifier],
            "engine": {"batch": 100, "device": "cpu", "precision": "float32", "images_per_unit": 16},
            "output": "unused",
            **sections,
        }
    )
    dataset = DatasetRecord(digest="d" * 64, num_classes=classes, image_shape=(1, 28, 28))
    return record_of(config, dataset, images)


def record_of(config: RunConfig, dataset: DatasetRecord, images: int) -> RunRecord:
    """The record of a config's run on the first images of a data set."""
    ids = tuple(range(images))
    digests = tuple(str(sub_image) * 64 for sub_image in range(config.partition.sub_images))
    return RunRecord(
        run_id=run_id(identity(config, dataset, ids, digests)),
        created="2026-01-02T03:04:05+00:00",
        config=config,
        dataset=dataset,
        image_ids=ids,
        classifier_digests=digests,
        stopping=config.certificate,
        software={},
        hardware="none",
    )
