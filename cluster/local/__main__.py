"""`make cluster-up` and `make cluster-down`: a Ray cluster of a head and worker nodes on this machine, with a token.

`python -m cluster.local up [--workers N] [--cpus N]` starts it and writes a file of shell exports to `source`;
`python -m cluster.local down` ends only the processes of this cluster.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import sys
from pathlib import Path

from cluster.local.cluster import LocalCluster
from cluster.local.node import Node

HOME = Path(f"/tmp/drs-ray-{os.getuid()}")  # short, because paths of sockets have a limit


def main() -> int:
    """Parse the command line and run the command."""
    parser = argparse.ArgumentParser(prog="python -m cluster.local", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    starting = commands.add_parser("up", help="start it")
    starting.add_argument("--workers", type=int, default=2, help="nodes that do work, beside the head [default: 2]")
    starting.add_argument("--cpus", type=float, default=1, help="CPUs of each of them [default: 1]")
    commands.add_parser("down", help="end it")
    chosen = parser.parse_args()
    return up(chosen.workers, chosen.cpus) if chosen.command == "up" else down()


def up(workers: int, cpus: float) -> int:
    """Start a head and worker nodes that outlive this process."""
    try:
        HOME.mkdir(mode=0o700)
    except FileExistsError:
        print(f"error: {HOME} is there: a cluster runs already; end it with `make cluster-down`", file=sys.stderr)
        return 1
    cluster = LocalCluster(HOME)
    try:
        cluster.start_head()
        for _ in range(workers):
            cluster.add_node(cpus=cpus)
    except RuntimeError as error:
        down()
        print(f"error: {error}", file=sys.stderr)
        return 1
    exports = HOME / "environment"
    exports.write_text("".join(f"export {name}={shlex.quote(value)}\n" for name, value in cluster.access.items()))
    print(f"a head and {workers} nodes of {cpus:g} CPUs run on loopback; to use them in this shell:")
    print(f"    source {exports}")
    print(f"dashboard: {cluster.access['RAY_API_SERVER_ADDRESS']} (asks for the token in {HOME / 'token'})")
    return 0


def down() -> int:
    """End all nodes that `up` has started, and delete the token."""
    for session in sorted(HOME.glob("*/session")):
        node = Node.find(session.parent)
        if node is not None:
            node.kill()
    shutil.rmtree(HOME, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
