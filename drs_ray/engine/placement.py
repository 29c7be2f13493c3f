"""The resources that a Ray worker requests, and how many workers a node can hold. Pure functions."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from drs_ray.config import EngineConfig
from drs_ray.errors import ConfigError, counted

Node = Mapping[str, Any]
"""One entry of `ray.nodes()`, with "Alive", "Resources" (name -> total) and "Labels" (key -> value)."""


@dataclass(frozen=True)
class Placement:
    """CPUs, GPUs and custom resources of one worker, and the labels that its node must have."""

    cpus: float
    gpus: float
    resources: Mapping[str, float]
    labels: Mapping[str, str]

    @classmethod
    def of(cls, engine: EngineConfig) -> Placement:
        """The placement of a config. On cuda the default of `gpus_per_worker` is a whole GPU.

        Raises:
            ConfigError: Ray gives no such share of GPUs.
        """
        gpus = engine.gpus_per_worker
        if gpus is None:
            gpus = 1.0 if engine.device == "cuda" else 0.0
        if gpus > 1 and not gpus.is_integer():
            raise ConfigError(f"engine.gpus_per_worker: must be at most 1 or a whole number, got {gpus:g}")
        return cls(engine.cpus_per_worker, gpus, engine.resources, engine.labels)

    @property
    def options(self) -> dict[str, Any]:
        """Options of the Ray actor."""
        return {
            "num_cpus": self.cpus,
            "num_gpus": self.gpus,
            "resources": dict(self.resources),
            "label_selector": dict(self.labels),
        }

    @property
    def needed(self) -> dict[str, float]:
        """Requested amount of each Ray resource."""
        return {"CPU": self.cpus, **({"GPU": self.gpus} if self.gpus else {}), **self.resources}

    @property
    def needs(self) -> str:
        """Requested resources of one worker, in words."""
        custom = "".join(f" and {amount:g} {name}" for name, amount in self.resources.items())
        labels = ", ".join(f"{key}={value}" for key, value in self.labels.items())
        where = f", on nodes labelled {labels}" if labels else ""
        return f"{_amount('CPU', self.cpus)} and {_amount('GPU', self.gpus)}{custom} per worker{where}"

    def allows(self, node: Node) -> bool:
        """Whether the node is alive and has the requested labels."""
        labels = node.get("Labels", {})
        return bool(node["Alive"]) and all(_matches(value, labels.get(key)) for key, value in self.labels.items())

    def workers_on(self, node: Node) -> int:
        """How many workers the node can hold when it is idle."""
        if not self.allows(node):
            return 0
        have = node["Resources"]
        fits = [_times(self.cpus, have.get("CPU", 0.0))]
        if self.gpus >= 1:
            fits.append(_times(self.gpus, have.get("GPU", 0.0)))
        elif self.gpus:  # a worker's fraction must lie on one GPU
            fits.append(int(have.get("GPU", 0.0)) * _times(self.gpus, 1.0))
        fits += [_times(amount, have.get(name, 0.0)) for name, amount in self.resources.items()]
        return min(fits)

    def nodes_text(self, nodes: Sequence[Node]) -> str:
        """Total amounts of the requested resources on all live nodes, in words."""
        alive = [node for node in nodes if node["Alive"]]
        totals = {name: sum(node["Resources"].get(name, 0.0) for node in alive) for name in self._names}
        labelled = f", {sum(map(self.allows, alive))} of them so labelled" if self.labels else ""
        return f"{counted(len(alive), 'node')} with {self._amounts(totals)}{labelled}"

    def free(self, available: Mapping[str, float], nodes: Sequence[Node]) -> str:
        """Free amounts of the requested resources, in words. available: the result of `ray.available_resources()`."""
        alive = [node for node in nodes if node["Alive"]]
        labelled = (
            f", {sum(map(self.allows, alive))} of {counted(len(alive), 'node')} so labelled" if self.labels else ""
        )
        return f"{self._amounts(available)}{labelled}"

    @property
    def _names(self) -> tuple[str, ...]:
        return ("CPU", "GPU", *self.resources)

    def _amounts(self, have: Mapping[str, float]) -> str:
        return ", ".join(_amount(name, have.get(name, 0.0)) for name in self._names)


def _amount(name: str, amount: float) -> str:
    """1 CPU, 0.5 GPUs, 2 fast_disk."""
    return f"{amount:g} {name}{'s' if name in ('CPU', 'GPU') and amount != 1 else ''}"


def _times(want: float, have: float) -> int:
    """How often `want` fits into `have`. 0.1 fits into 0.3 three times, despite floating-point rounding."""
    return math.floor(have / want + 1e-6)


def _matches(selector: str, label: str | None) -> bool:
    """Ray's label selectors: value, !value, in(a, b), !in(a, b). A missing label differs from every value."""
    negated = selector.startswith("!")
    listed = re.fullmatch(r"in\((.*)\)", selector.removeprefix("!"))
    values = [value.strip() for value in listed[1].split(",")] if listed else [selector.removeprefix("!")]
    return (label in values) != negated
