"""One Ray node as processes of this machine, which are started, observed and ended together.

    node = Node.start(directory, "127.0.0.2", environment, ["--head", "--port=6379"])
    node.wait_ready()
    node.kill()

`ray stop` ends every Ray of the machine. `Node.kill` ends one node: the processes of the node's POSIX session.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sysconfig
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

START_SECONDS = 120.0
END_SECONDS = 30.0
OBJECT_STORE_BYTES = 80_000_000
"""Ray's minimum, which is enough: votes are stored in the store of the run, not in Ray's."""
WORKER_TITLE = "ray::RemoteWorker"
"""Process title of a drs-ray worker; while it computes a unit, `WORKER_TITLE` + ".run"."""


class Node:
    """`ray start --block` with all processes that it starts, including workers."""

    def __init__(self, directory: Path, address: str, session: int, process: subprocess.Popen[bytes] | None) -> None:
        """session: POSIX session of the node's processes. process: the first of them, if this process started it."""
        self._directory = directory
        self.address = address
        self.session = session
        self._process = process

    @classmethod
    def start(
        cls,
        directory: Path,
        address: str,
        environment: Mapping[str, str],
        options: Sequence[str],
        in_child: Callable[[], None] | None = None,
    ) -> Node:
        """Start the node without waiting (see `wait_ready`).

        Args:
            directory: created for the node's log and Ray's files. Its path must be short: Ray's sockets are below it,
                and their paths have a limit of about 100 characters.
            address: the node's own loopback address.
            environment: of all its processes; jobs run with the `python` on its PATH.
            options: options of `ray start`.
            in_child: called in the new process before Ray is started.
        """
        directory.mkdir()
        common = {
            "node-ip-address": address,
            "temp-dir": f"{directory}/ray",
            "object-store-memory": OBJECT_STORE_BYTES,
            "min-worker-port": 0,  # any free port, because fixed ranges of several nodes would collide
            "max-worker-port": 0,
            "dashboard-agent-listen-port": 0,
            "include-log-monitor": "false",  # output of workers is not needed: they report to the driver
        }
        ray = Path(sysconfig.get_path("scripts"), "ray")
        with (directory / "log").open("wb") as log:
            process = subprocess.Popen(
                [ray, "start", "--block", "--disable-usage-stats", *options, *flags(common)],
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=in_child,
            )
        (directory / "session").write_text(f"{address} {process.pid}")
        return cls(directory, address, process.pid, process)

    @classmethod
    def find(cls, directory: Path) -> Node | None:
        """The node that another process has started in the directory; None if it has ended."""
        address, session = (directory / "session").read_text().split()
        node = cls(directory, address, int(session), None)
        # Ids are used again: a session whose command lines do not name this directory is not the node's.
        return node if any(str(directory) in line for line in node.processes().values()) else None

    def wait_ready(self) -> None:
        """Return when the node has joined the cluster.

        Raises:
            RuntimeError: the node ended, or took too long; with its log.
        """
        deadline = time.monotonic() + START_SECONDS
        while "Ray runtime started" not in self.log:
            if not self.processes() or time.monotonic() > deadline:
                raise RuntimeError(f"a Ray node did not start: {self.log}")
            time.sleep(0.1)

    @property
    def log(self) -> str:
        """The output of `ray start`."""
        return (self._directory / "log").read_text(errors="replace")

    @property
    def ray_id(self) -> str:
        """Ray's id of the node."""
        found = [re.search(r"--node_id=(\w+)", line) for line in self.processes().values()]
        return next(match[1] for match in found if match)

    @property
    def is_alive(self) -> bool:
        """Whether its raylet runs: without it a node is lost."""
        return any("/raylet/raylet " in line for line in self.processes().values())

    def processes(self) -> dict[int, str]:
        """Command lines of its processes by process id, without zombies."""
        listed = subprocess.run(["ps", "-wwAo", "pid=,sess=,stat=,args="], capture_output=True, text=True, check=True)
        rows = [line.split(maxsplit=3) for line in listed.stdout.splitlines()]
        mine = [row for row in rows if len(row) == 4 and row[1] == str(self.session) and row[2][0] != "Z"]
        return {int(row[0]): row[3] for row in mine}

    def workers(self, title: str = WORKER_TITLE) -> list[int]:
        """Process ids of its workers whose process titles begin with `title`."""
        return [process for process, line in self.processes().items() if line.startswith(title)]

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to all of its processes."""
        for process in self.processes():
            try:
                os.kill(process, number)
            except ProcessLookupError:
                continue  # ended meanwhile

    def kill(self) -> None:
        """End all of its processes by SIGKILL, also stopped ones and those started meanwhile."""
        deadline = time.monotonic() + END_SECONDS
        while self.processes():
            self.signal(signal.SIGKILL)
            if time.monotonic() > deadline:
                raise RuntimeError(f"cannot be killed: {self.processes()}")
            time.sleep(0.02)
        if self._process is not None:
            self._process.wait()


def flags(options: Mapping[str, object]) -> list[str]:
    """Options as arguments of a command."""
    return [f"--{name}={value}" for name, value in options.items()]
