"""A Ray cluster on this machine: a head and further nodes as separate processes on loopback, with a token.

Linux only: each node has its own loopback address, so that a driver cannot mistake one node for another.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import sysconfig
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

from cluster.local.node import Node, flags


class LocalCluster:
    """Starts a head, then nodes; `access` is the environment with which a driver or `drs-ray submit` connects."""

    def __init__(
        self, home: Path, settings: Mapping[str, str] | None = None, in_child: Callable[[], None] | None = None
    ) -> None:
        """Create the token.

        Args:
            home: an existing directory that no other user may read, with a short path; nodes get directories below it.
            settings: environment of all nodes, jobs and workers, in addition to that of this process.
            in_child: called in every node's first process before Ray is started.
        """
        self._home = home
        self._settings = settings or {}
        self._in_child = in_child
        self._token = home / "token"
        self._token.write_text(secrets.token_hex(32))
        self._token.chmod(0o600)
        self._count = 0
        self._port = 0
        self._dashboard = 0

    def start_head(self, *, cpus: float = 0, dashboard: bool = True) -> Node:
        """Start a head, or a new head after the first was killed. Nodes of the old head do not join the new one.

        Args:
            cpus: CPUs for workers; 0, as on a real cluster, where only the driver runs on the head.
            dashboard: whether to start the dashboard with the server for job submission.
        """
        self._port, client_port = free_port(), free_port()
        self._dashboard = free_port() if dashboard else 0
        options = {
            "port": self._port,
            "num-cpus": cpus,
            "include-dashboard": str(dashboard).lower(),
            "ray-client-server-port": client_port,
        }
        if dashboard:
            options |= {"dashboard-host": "127.0.0.1", "dashboard-port": self._dashboard}
        self._head_address = self._next_address()
        return self._launch(self._head_address, ["--head", *flags(options)])

    def add_node(
        self,
        *,
        cpus: float = 1,
        gpus: int = 0,
        resources: Mapping[str, float] | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> Node:
        """Start a node and wait until it is ready. gpus: number that Ray assigns; the machine need not have them."""
        options = {
            "address": f"{self._head_address}:{self._port}",
            "num-cpus": cpus,
            "num-gpus": gpus,
            "resources": json.dumps(dict(resources or {})),
            "labels": ",".join(f"{key}={value}" for key, value in (labels or {}).items()),
        }
        given = flags({key: value for key, value in options.items() if value != ""})
        return self._launch(self._next_address(), given, without=("CUDA_VISIBLE_DEVICES",) if gpus else ())

    @property
    def access(self) -> dict[str, str]:
        """Environment of a process that uses the cluster."""
        found = self._secret | {"RAY_ADDRESS": f"{self._head_address}:{self._port}"}
        if self._dashboard:
            found["RAY_API_SERVER_ADDRESS"] = f"http://127.0.0.1:{self._dashboard}"
        return found

    @property
    def _secret(self) -> dict[str, str]:
        # Every process needs both: `ray start --address` does not turn authentication on by itself.
        return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(self._token)}

    def _next_address(self) -> str:
        self._count += 1
        return f"127.0.{self._count // 250}.{2 + self._count % 250}"

    def _launch(self, address: str, options: Sequence[str], without: Collection[str] = ()) -> Node:
        """Start a node and wait for it. without: variables that it does not inherit."""
        # A job's `python` is the first on the head's PATH: the one of this environment.
        path = os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", os.defpath)])
        inherited = {name: value for name, value in os.environ.items() if name not in without}
        environment = inherited | {"PATH": path} | self._secret | dict(self._settings)
        node = Node.start(self._home / str(self._count), address, environment, options, self._in_child)
        try:
            node.wait_ready()
        except BaseException:
            node.kill()
            raise
        return node


def free_port() -> int:
    """A free port of loopback."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
