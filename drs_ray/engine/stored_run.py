"""Adapts a stored run to this machine: paths of its data and weights, and the device."""

from __future__ import annotations

import re
from collections.abc import Iterable

import torch

from drs_ray.config import DEFAULT_BATCH, apply_overrides, parse_config
from drs_ray.counts.run_record import RunRecord
from drs_ray.errors import ConfigError

_PLACES = re.compile(r"dataset\.(root|endpoint_url)|classifiers\.\d+\.((denoiser\.)?(checkpoint|entry)|members)")


def with_places_here(record: RunRecord, overrides: Iterable[str]) -> RunRecord:
    """The record with other paths of the same data and checkpoints; their digests are checked on loading.

    Args:
        record: the run.
        overrides: `dataset.root=...`, `classifiers.0.checkpoint=...`.

    Raises:
        ConfigError: an override of another key.
    """
    overrides = list(overrides)
    for override in overrides:
        if not _PLACES.fullmatch(override.partition("=")[0].strip()):
            raise ConfigError(
                f"--set {override}: the run is taken as it is, only dataset.root, classifiers.N.checkpoint, "
                "classifiers.N.members and classifiers.N.entry (where the same data and weights are here) can be set"
            )
    config = parse_config(apply_overrides(record.config.model_dump(mode="json"), overrides))
    return record.model_copy(update={"config": config})


def device_here(asked: str | None, record: RunRecord) -> str:
    """The requested device, or else the run's, or cpu if this machine has no GPU.

    Raises:
        ConfigError: the requested device is unknown, or this machine does not have it.
    """
    if asked not in (None, "cpu", "cuda"):
        raise ConfigError(f"device must be cpu or cuda, got {asked}")
    has_gpu = torch.cuda.is_available()
    if asked == "cuda" and not has_gpu:
        raise ConfigError("device: cuda needs a GPU and this machine has none; use cpu")
    return asked or ("cuda" if has_gpu and record.config.engine.device == "cuda" else "cpu")


def on_device(record: RunRecord, device: str) -> RunRecord:
    """The record for another kind of device; votes may differ from the run's.

    The forward batch is at most that device's default, and nothing is compiled.
    """
    batch = min(record.batch, DEFAULT_BATCH[device])
    config = record.config.updated("engine", device=device, batch=batch, compile=False)
    return record.model_copy(update={"config": config})
