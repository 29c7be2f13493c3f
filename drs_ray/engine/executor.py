"""Where units are carried out: what a run asks of that place, be it this process or workers on a Ray."""

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
    """What a run asks of the place where its units are carried out."""

    def has_gpus(self) -> bool:
        """Whether workers will find a GPU."""

    def has_bfloat16(self, device: str, observer: Observer) -> bool:
        """Whether the workers' devices have units for bfloat16; of a cluster, one worker's is looked at.

        observer: told where no node of a cluster can hold a worker now.
        """

    def check(self, engine: EngineConfig) -> None:
        """Refuse what can never be served; a cluster may still grow.

        Raises:
            ConfigError: a GPU is asked for and there is none, or more CPUs than there are.
        """

    def room(self, engine: EngineConfig) -> int:
        """How many workers would find room now."""

    def measure(self, units: Sequence[Unit], record: RunRecord, observer: Observer) -> Mapping[int, Sequence[Measured]]:
        """How fast workers are with each unit's classifier on each unit's image; the units are not carried out.

        Returns:
            By sub-image; one that could not be measured is not there.

        Raises:
            ConfigError, EngineError: no worker can be had, or Ray fails.
        """

    def run(
        self, units: Sequence[Unit], record: RunRecord, remaining: RemainingUnits, store: Store, observer: Observer
    ) -> dict[Unit, str]:
        """Carry out the units, and those that they call for.

        Returns:
            The units that were set aside, with the reason.

        Raises:
            ConfigError, EngineError: no worker can be had, unit after unit fails, or Ray fails.
        """

    def close(self) -> None:
        """Leave what was started or attached to."""


def check_this_machine(engine: EngineConfig) -> None:
    """Refuse what workers on this machine could never have.

    Raises:
        ConfigError: a GPU is asked for and there is none, or more CPUs than there are.
    """
    import torch

    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if engine.device == "cuda" and not gpus:
        raise ConfigError(
            "engine.device: cuda needs a GPU and this machine has none; use device cpu, or a cluster (address auto)"
        )
    for key, have, want in (
        ("gpus_per_worker", gpus, engine.gpus_per_worker or 0),
        ("cpus_per_worker", os.cpu_count() or 1, engine.cpus_per_worker),
    ):
        if want > have:
            raise ConfigError(
                f"engine.{key}: must be <= {have}, what this machine has, got {exact_text(want)}; "
                "lower it or use a cluster (engine.address: auto)"
            )
