"""A Ray cluster of real nodes on one machine, whose nodes can be killed, stopped, drained and replaced.

    with RayCluster() as cluster:
        node = cluster.add_node(cpus=1)
        drs_ray(["certify", config], env=cluster.environment())
        cluster.kill(node)

It is the cluster of `make cluster-up`, without a dashboard unless a test asks for it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sysconfig
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from cluster.local.cluster import LocalCluster
from cluster.local.node import WORKER_TITLE, Node, flags
from tests.servers import _end_with_parent

__all__ = ["QUICK_HEALTH_CHECKS", "WORKER_TITLE", "Node", "RayCluster"]

QUICK_HEALTH_CHECKS = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "4",
}
"""A head with these finds a silent node dead after some 5 seconds, not 35."""


class RayCluster:
    """A head that takes no work, and the nodes that are added; with a token, as Ray 2.60 wants it by default."""

    def __init__(self, *, cpus: float = 0, dashboard: bool = False, settings: Mapping[str, str] | None = None) -> None:
        """cpus: of the head. settings: environment of all nodes, for example `QUICK_HEALTH_CHECKS`."""
        self._cpus = cpus
        self._dashboard = dashboard
        self._settings = settings or {}
        self._nodes: list[Node] = []

    def __enter__(self) -> Self:
        self._home = tempfile.TemporaryDirectory(prefix="drs-", dir="/tmp", ignore_cleanup_errors=True)
        try:
            self._local = LocalCluster(Path(self._home.name), self._settings, _end_with_parent)
            self.start_head()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def environment(self) -> dict[str, str]:
        """What a driver needs to find the cluster as `engine.address: auto`."""
        return os.environ | self._local.access

    @property
    def nodes(self) -> list[Node]:
        """The nodes that were added and not killed; Ray may hold some of them for dead."""
        return [node for node in self._nodes if node is not self.head]

    def start_head(self) -> None:
        """Start a head; also a new one after the first was killed. Nodes of the old one do not come over."""
        self.head = self._local.start_head(cpus=self._cpus, dashboard=self._dashboard)
        self._nodes.append(self.head)

    def add_node(
        self,
        *,
        cpus: float = 1,
        gpus: int = 0,
        resources: Mapping[str, float] | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> Node:
        """A node that is ready for work. gpus: which Ray hands out, whether the machine has them or not."""
        self._nodes.append(self._local.add_node(cpus=cpus, gpus=gpus, resources=resources, labels=labels))
        return self._nodes[-1]

    def kill(self, node: Node) -> None:
        """The machine is switched off."""
        node.kill()
        self._nodes.remove(node)

    def stop(self, node: Node) -> None:
        """The machine hangs: nothing on it runs, its connections stay open."""
        node.signal(signal.SIGSTOP)

    def resume(self, node: Node) -> None:
        """The machine goes on as if nothing had happened."""
        node.signal(signal.SIGCONT)

    def drain(self, node: Node, seconds: int) -> None:
        """Announce that the node will go in so many seconds, as a spot instance does."""
        options = {
            "address": self._local.access["RAY_ADDRESS"],
            "node-id": node.ray_id,
            "reason": "DRAIN_NODE_REASON_PREEMPTION",
            "reason-message": "spot",
            "deadline-remaining-seconds": seconds,
        }
        ray = Path(sysconfig.get_path("scripts"), "ray")
        done = subprocess.run(
            [ray, "drain-node", *flags(options)], env=self.environment(), capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr

    def _end(self) -> None:
        while self._nodes:
            self.kill(self._nodes[-1])
        self._home.cleanup()
