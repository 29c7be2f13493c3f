"""How many workers a cluster has room for."""

from __future__ import annotations

from typing import Any

import pytest
from ray.exceptions import RpcError

from drs_ray.config import EngineConfig
from drs_ray.engine.ray import driver
from drs_ray.engine.ray.driver import room
from drs_ray.errors import EngineError


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
