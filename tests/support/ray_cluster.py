"""A Ray cluster of real nodes on one machine, whose nodes can be killed, stopped, drained and replaced.

    with RayCluster(tmp_path) as cluster:
        node = cluster.add_node(cpus=1)
        drs_ray(["certify", config], env=cluster.environment())
        cluster.kill(node)

Linux only: each node has a loopback address of its own, so that a driver cannot mistake one node for another.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import signal
import socket
import subprocess
import sysconfig
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.servers import _end_with_parent

START_SECONDS = 120.0
END_SECONDS = 30.0
OBJECT_STORE_BYTES = 80_000_000
WORKER_TITLE = "ray::RemoteWorker"
"""How the process of a worker calls itself; while it does a unit, `WORKER_TITLE` + ".run"."""
QUICK_HEALTH_CHECKS = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "4",
}
"""A head with these finds a silent node dead after some 5 seconds, not 35."""


class Node:
    """One `ray start --block` with all that it starts, workers too: the processes of one POSIX session."""

    def __init__(self, directory: Path, address: str, environment: dict[str, str], options: Sequence[str]) -> None:
        """Launch it; `wait_ready` says when it takes work."""
        self.address = address
        self._log = directory / "log"
        ray = Path(sysconfig.get_path("scripts"), "ray")
        common = {
            "node-ip-address": address,
            "temp-dir": f"{directory}/ray",
            "object-store-memory": OBJECT_STORE_BYTES,
            "min-worker-port": 0,
            "max-worker-port": 0,
            "dashboard-agent-listen-port": 0,
            "include-log-monitor": "false",
        }
        directory.mkdir()
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [ray, "start", "--block", "--disable-usage-stats", *options, *flags(common)],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_end_with_parent,
            )

    def wait_ready(self) -> None:
        """Return when the node has joined the cluster; fail with what it printed when it ended instead."""
        deadline = time.monotonic() + START_SECONDS
        while "Ray runtime started" not in self._log.read_text():
            assert self._process.poll() is None, self._log.read_text()
            assert time.monotonic() < deadline, f"a node did not start: {self._log.read_text()}"
            time.sleep(0.1)

    @property
    def ray_id(self) -> str:
        """The name that Ray has given to the node."""
        found = [re.search(r"--node_id=(\w+)", line) for line in self.processes().values()]
        return next(match[1] for match in found if match)

    @property
    def is_alive(self) -> bool:
        """Whether its raylet runs: without it a node is lost."""
        return any("/raylet/raylet " in line for line in self.processes().values())

    @property
    def session(self) -> int:
        """The POSIX session of its processes."""
        return self._process.pid

    def processes(self) -> dict[int, str]:
        """Command lines of its processes by process id, zombies left out."""
        listed = subprocess.run(["ps", "-wwAo", "pid=,sess=,stat=,args="], capture_output=True, text=True, check=True)
        rows = [line.split(maxsplit=3) for line in listed.stdout.splitlines()]
        mine = [row for row in rows if len(row) == 4 and row[1] == str(self.session) and row[2][0] != "Z"]
        return {int(row[0]): row[3] for row in mine}

    def workers(self, title: str = WORKER_TITLE) -> list[int]:
        """Process ids of its workers whose titles begin so."""
        return [process for process, line in self.processes().items() if line.startswith(title)]

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to all of its processes."""
        for process in self.processes():
            try:
                os.kill(process, number)
            except ProcessLookupError:
                continue  # ended meanwhile

    def kill(self) -> None:
        """End all of its processes by SIGKILL, stopped ones too, and those that they start meanwhile."""
        deadline = time.monotonic() + END_SECONDS
        while self.processes():
            self.signal(signal.SIGKILL)
            assert time.monotonic() < deadline, f"cannot be killed: {self.processes()}"
            time.sleep(0.02)
        self._process.wait()


class RayCluster:
    """A head that takes no work, and the nodes that are added; with a token, as Ray 2.60 wants it by default."""

    def __init__(self, *, cpus: float = 0, settings: dict[str, str] | None = None) -> None:
        """cpus: of the head. settings: environment of the head, for example `QUICK_HEALTH_CHECKS`."""
        self._cpus = cpus
        self._settings = settings or {}
        self._nodes: list[Node] = []
        self._count = 0
        self._port = 0

    def __enter__(self) -> Self:
        self._home = tempfile.TemporaryDirectory(prefix="drs-", dir="/tmp", ignore_cleanup_errors=True)
        try:
            self._token = Path(self._home.name, "token")
            self._token.write_text(secrets.token_hex(32))
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
        return os.environ | {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self._token),
            "RAY_ADDRESS": f"{self.head.address}:{self._port}",
        }

    @property
    def nodes(self) -> list[Node]:
        """The nodes that were added and not killed; Ray may hold some of them for dead."""
        return [node for node in self._nodes if node is not self.head]

    def start_head(self) -> None:
        """Start a head; also a new one after the first was killed. Nodes of the old one do not come over."""
        self._port, client_port = _free_port(), _free_port()
        options = {
            "port": self._port,
            "num-cpus": self._cpus,
            "include-dashboard": "false",
            "ray-client-server-port": client_port,
        }
        self.head = self._launch(["--head", *flags(options)], self._settings)

    def add_node(
        self,
        *,
        cpus: float = 1,
        gpus: int = 0,
        resources: Mapping[str, float] | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> Node:
        """A node that is ready for work. gpus: which Ray hands out, whether the machine has them or not."""
        options = {
            "address": f"{self.head.address}:{self._port}",
            "num-cpus": cpus,
            "num-gpus": gpus,
            "resources": json.dumps(dict(resources or {})),
            "labels": ",".join(f"{key}={value}" for key, value in (labels or {}).items()),
        }
        return self._launch(flags({name: value for name, value in options.items() if value != ""}), {})

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
            "address": f"{self.head.address}:{self._port}",
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

    def _launch(self, options: Sequence[str], settings: dict[str, str]) -> Node:
        self._count += 1
        directory = Path(self._home.name, str(self._count))
        address = f"127.0.{self._count // 250}.{2 + self._count % 250}"
        secret = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(self._token)}
        node = Node(directory, address, os.environ | secret | settings, options)
        self._nodes.append(node)
        node.wait_ready()
        return node

    def _end(self) -> None:
        while self._nodes:
            self.kill(self._nodes[-1])
        self._home.cleanup()


def flags(options: dict[str, object]) -> list[str]:
    """Options as arguments of a command."""
    return [f"--{name}={value}" for name, value in options.items()]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
