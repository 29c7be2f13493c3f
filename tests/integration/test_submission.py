"""From a shell to a Ray cluster of separate nodes and a real S3 server: the shipped demo submitted, hurt, resumed."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import sysconfig
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import drs_ray
from tests.servers import BUCKET, S3Server
from tests.support.ray_cluster import QUICK_HEALTH_CHECKS, WORKER_TITLE, Node, RayCluster
from tests.support.runs import command, counts_digest, resumed_line

pytestmark = [
    pytest.mark.ray,
    pytest.mark.s3,
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="nodes have loopback addresses of their own"),
]

ROOT = Path(__file__).parents[2]
CONFIG = "jobs/configs/demo.yaml"
RAY = str(Path(sysconfig.get_path("scripts"), "ray"))


class Place:
    """The demo with checkpoints and output on the S3 server, small enough for a test."""

    def __init__(self, server: S3Server, images: int) -> None:
        self._server = server
        self._images = images
        self._folder = f"submission-{uuid.uuid4().hex}"  # other tests write to the bucket, too

    def uri(self, name: str) -> str:
        """Where a run or a checkpoint called `name` is."""
        return f"s3://{BUCKET}/{self._folder}/{name}"

    def overrides(self, name: str, **further: object) -> list[str]:
        """`key=value` of a run called `name`."""
        chosen = {f"classifiers.{k}.checkpoint": self.uri(f"checkpoints/{k}.safetensors") for k in (0, 1)}
        chosen |= {"dataset.images.stop": self._images, "budget.estimation": 2000, "engine.images_per_unit": 2}
        chosen |= {"output": self.uri(name), **{key.replace("__", "."): v for key, v in further.items()}}
        return [f"{key}={value}" for key, value in chosen.items()]

    def options(self, name: str, **further: object) -> list[str]:
        """`overrides` as arguments."""
        return [word for override in self.overrides(name, **further) for word in ("--set", override)]

    def parts(self, name: str) -> int:
        """How many parts the run has stored."""
        client = self._server.client()
        try:
            return int(client.list_objects_v2(Bucket=BUCKET, Prefix=f"{self._folder}/{name}/counts/")["KeyCount"])
        finally:
            client.close()


@pytest.fixture(scope="module")
def place(seaweed_server: S3Server) -> Iterator[Place]:
    """Trained classifiers on the server, whose credentials and address are in the environment; the inline run, too."""
    place = Place(seaweed_server, images=24)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in seaweed_server.environment.items():
            patch.setenv(name, value)
        overrides = place.overrides("inline", engine__address="inline", training__epochs=1)
        config = drs_ray.load_config(ROOT / CONFIG, overrides)
        drs_ray.train(config)
        drs_ray.certify(config)
        yield place


@pytest.fixture(scope="module")
def cluster(place: Place) -> Iterator[RayCluster]:
    """A head, which does no work, with its dashboard; jobs and workers have the S3 server's environment."""
    with RayCluster(dashboard=True, settings=QUICK_HEALTH_CHECKS) as cluster:
        yield cluster


def _same_as_inline(place: Place, name: str) -> bool:
    certificates = [drs_ray.read_certificates(place.uri(run)) for run in (name, "inline")]
    digests = {counts_digest(place.uri(run)) for run in (name, "inline")}
    return certificates[0].equals(certificates[1]) and len(digests) == 1


def _run(arguments: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(arguments, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240)


def _wait(condition: Callable[[], Any], what: str) -> None:
    deadline = time.monotonic() + 240
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.1)


def _held_in_a_unit(node: Node) -> int | None:
    """A worker of the node that is stopped within a unit; None if none is in one."""
    for pid in node.workers(f"{WORKER_TITLE}.run"):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
            if pid in node.workers(f"{WORKER_TITLE}.run"):
                return pid
            os.kill(pid, signal.SIGCONT)
    return None


def test_a_submitted_run_survives_the_loss_of_its_node(place: Place, cluster: RayCluster, tmp_path: Path) -> None:
    first = cluster.add_node()
    with (tmp_path / "log").open("wb") as log:
        submitted = subprocess.Popen(
            command(["submit", CONFIG, *place.options("survives")]),
            cwd=ROOT,
            env=cluster.environment(),
            stdout=log,
            stderr=log,
        )
    try:
        _wait(lambda: place.parts("survives") or submitted.poll() is not None, "a part")
        _wait(lambda: _held_in_a_unit(first) or submitted.poll() is not None, "a unit at work")
        assert submitted.poll() is None, (tmp_path / "log").read_text()
        cluster.kill(first)
        cluster.add_node()
        code = submitted.wait(timeout=240)
    finally:
        submitted.kill()
        submitted.wait()
    text = (tmp_path / "log").read_text()
    assert code == 0, text
    assert "follow: ray job logs --address http://127.0.0.1:" in text
    assert "the unit is tried again" in text  # the node was lost under it
    assert _same_as_inline(place, "survives")


def test_a_stopped_job_ends_cleanly_and_another_resumes_it(place: Place, cluster: RayCluster) -> None:
    if not cluster.nodes:
        cluster.add_node()
    environment = cluster.environment()
    job = [RAY, "job", "submit", "--working-dir", ".", "--runtime-env-json"]
    job += ['{"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "60"}}', "--submission-id"]
    entry = ["--", "python", "jobs/certify.py", CONFIG, *place.options("resumed")]
    begun = _run([*job, "first", "--no-wait", *entry], environment)
    assert begun.returncode == 0, begun.stderr
    _wait(lambda: place.parts("resumed"), "a part")
    held: list[int] = []
    _wait(lambda: held.extend(filter(None, map(_held_in_a_unit, cluster.nodes))) or held, "a unit at work")
    stopped = _run([RAY, "job", "stop", "first"], environment)
    assert "'first' was stopped" in stopped.stdout + stopped.stderr
    log = _run([RAY, "job", "logs", "first"], environment).stdout
    assert "interrupted by SIGTERM; finished units are stored in s3://" in log
    assert "Traceback" not in log
    for pid in held:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
    _wait(lambda: not any(node.workers() for node in cluster.nodes), "its workers to end")
    stored = place.parts("resumed")
    assert 1 <= stored < 24
    again = _run([*job, "second", *entry], environment)
    assert again.returncode == 0, again.stdout
    assert resumed_line(stored, 24 - stored) in again.stdout
    assert _same_as_inline(place, "resumed")


def test_what_the_cluster_cannot_give_and_whom_it_does_not_know(
    place: Place, cluster: RayCluster, tmp_path: Path
) -> None:
    environment = cluster.environment()
    gpus = {"engine__device": "cuda", "engine__stall_seconds": 2}
    refused = _run(command(["submit", CONFIG, *place.options("gpus", **gpus)]), environment)
    assert refused.returncode == 1
    assert "warning: no node of the cluster can hold a worker now: asked for 1 CPU and 1 GPU" in refused.stdout
    message = next(line for line in refused.stdout.splitlines() if line.startswith("error: "))
    assert "1 GPU per worker" in message
    assert "Traceback" not in refused.stdout + refused.stderr
    assert refused.stderr.splitlines()[-1].startswith("error: job raysubmit_")
    (tmp_path / "token").write_text("0" * 64)
    for file in ("token", "none"):
        wrong = environment | {"RAY_AUTH_TOKEN_PATH": str(tmp_path / file)}
        refused = _run(command(["submit", CONFIG, *place.options("token")]), wrong)
        assert refused.returncode == 1
        assert refused.stderr.count("\n") == 1, refused.stderr
        assert "set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN_PATH" in refused.stderr


def test_the_dashboard_listens_on_loopback_alone(cluster: RayCluster) -> None:
    access = cluster.environment()
    host, port = access["RAY_API_SERVER_ADDRESS"].removeprefix("http://").split(":")
    socket.create_connection((host, int(port))).close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.250", int(port)))  # also this machine, but not what it listens on
    assert Path(access["RAY_AUTH_TOKEN_PATH"]).stat().st_mode & 0o077 == 0
