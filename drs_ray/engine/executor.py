"""The interface of executors, which compute units in this process or in Ray workers."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Protocol

from drs_ray.certificates.rounding import exact_text
from drs_ray.config import EngineConfig
from drs_ray.counts.plan import Unit
from drs_ray.counts.run_record import RunRecord
from drs_ray.engine.observer import Observer
from drs_ray.engine.outcome import Measured
from drs_ray.engine.remaining_units import RemainingUnits
from drs_ray.errors import ConfigError
from drs_ray.storage import Store


class Executor(Protocol):
    """Computes a run's units."""

    def has_gpus(self) -> bool:
        """Whether workers will find a GPU."""

    def has_bfloat16(self, device: str, observer: Observer) -> bool:
        """Whether the workers' devices have bfloat16 units; on a cluster, the device of one worker is examined.

        observer: receives a warning if no node of a cluster can hold a worker now.
        """

    def check(self, engine: EngineConfig) -> None:
        """Refuse a config whose workers can never be placed. A cluster is not checked, because it may grow.

        Raises:
            ConfigError: the config asks for a GPU and there is none, or for more CPUs or GPUs than there are.
        """

    def room(self, engine: EngineConfig) -> int:
        """How many workers fit on the available nodes now."""

    def measure(self, units: Sequence[Unit], record: RunRecord, observer: Observer) -> Mapping[int, Sequence[Measured]]:
        """Measure the speed of each unit's classifier on the unit's first image, without storing anything.

        Returns:
            Measurements by sub-image, without sub-images that could not be measured.

        Raises:
            ConfigError, EngineError: no worker can be started, or Ray fails.
        """

    def run(
        self, units: Sequence[Unit], record: RunRecord, remaining: RemainingUnits, store: Store, observer: Observer
    ) -> dict[Unit, str]:
        """Compute the units, and the units of later stages that `remaining` adds.

        Returns:
            The units that were set aside, with the reason.

        Raises:
            ConfigError, EngineError: no worker can be started, too many units in a row fail, or Ray fails.
        """

    def close(self) -> None:
        """Stop or leave the Ray that this executor started or joined."""


def check_this_machine(engine: EngineConfig) -> None:
    """Refuse resources of a worker that this machine does not have.

    Raises:
        ConfigError: the config asks for a GPU and there is none, or for more CPUs or GPUs than there are.
    """
    import torch

    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if engine.device == "cuda" and not gpus:
        raise ConfigError(
            "engine.device: cuda needs a GPU and this machine has none; use device cpu, or a cluster (address auto)"
        )
    check_fits("gpus_per_worker", engine.gpus_per_worker or 0, gpus)
    check_fits("cpus_per_worker", engine.cpus_per_worker, os.cpu_count() or 1)


def check_fits(key: str, wanted: float, there: float) -> None:
    """Refuse a worker that wants more CPUs or GPUs than this machine has. key: of `engine`, which wants them.

    Raises:
        ConfigError: it wants more.
    """
    if wanted > there:
        raise ConfigError(
            f"engine.{key}: must be <= {exact_text(there)}, what this machine has, got {exact_text(wanted)}; lower it "
            "or use a cluster (engine.address: auto)"
        )
