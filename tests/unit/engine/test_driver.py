"""How many workers a cluster has room for, node by node."""

from __future__ import annotations

from typing import Any

import pytest
from ray.exceptions import RpcError

from drs_ray.config import EngineConfig
from drs_ray.engine import driver
from drs_ray.engine.driver import room, workers_on
from drs_ray.errors import EngineError


@pytest.mark.parametrize(
    ("cpus", "gpus", "node", "workers"),
    [
        (0.1, 0, {"CPU": 1.0}, 10),  # 1 // 0.1 is 9
        (0.1, 0, {"CPU": 0.3}, 3),
        (0.3, 0, {"CPU": 1.0}, 3),
        (2, 0, {"CPU": 3.0}, 1),
        (1, 0, {}, 0),
        (1, 1, {"CPU": 64.0}, 0),
        (1, 1, {"CPU": 64.0, "GPU": 8.0}, 8),
        (4, 1, {"CPU": 16.0, "GPU": 8.0}, 4),
        (1, 2, {"CPU": 64.0, "GPU": 3.0}, 1),
        (1, 0.1, {"CPU": 64.0, "GPU": 1.0}, 10),
        (1, 0.4, {"CPU": 64.0, "GPU": 2.0}, 4),  # a worker's share is of one GPU
    ],
)
def test_workers_on_a_node(cpus: float, gpus: float, node: dict[str, float], workers: int) -> None:
    assert workers_on(node, cpus, gpus) == workers


class Cluster:
    def __init__(self, nodes: list[dict[str, Any]] | Exception) -> None:
        self._nodes = nodes

    def nodes(self) -> list[dict[str, Any]]:
        if isinstance(self._nodes, Exception):
            raise self._nodes
        return self._nodes


def test_what_is_left_over_on_two_nodes_is_room_for_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [{"Alive": True, "Resources": {"CPU": 3.0}}] * 2 + [{"Alive": False, "Resources": {"CPU": 100.0}}]
    monkeypatch.setattr(driver, "ray", Cluster(nodes))
    assert room(EngineConfig(cpus_per_worker=2.0)) == 2  # 6 CPUs in all


def test_a_lost_ray_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "ray", Cluster(RpcError("GCS is gone")))
    with pytest.raises(EngineError, match=r"^Ray was lost \(RpcError: .*; what is stored is kept: start Ray again"):
        room(EngineConfig())
