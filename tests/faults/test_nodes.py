"""Whole nodes that are lost, hang, join or are drained, and a lost head: real Ray nodes, and the undisturbed votes."""

from __future__ import annotations

import os
import signal
import sys

import pytest

from drs_ray import certify
from drs_ray.config import parse_config
from tests.support.ray_cluster import QUICK_HEALTH_CHECKS, WORKER_TITLE, RayCluster
from tests.support.runs import BATCH, Driver, counts_digest, resumed_line, run_data, stored_parts, write_config

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="nodes have loopback addresses of their own"),
]

AT_WORK = f"{WORKER_TITLE}.run"


@pytest.fixture(scope="module")
def shared_cluster():
    with RayCluster(settings=QUICK_HEALTH_CHECKS) as cluster:
        yield cluster


@pytest.fixture
def cluster(shared_cluster):
    """A head without nodes."""
    yield shared_cluster
    for node in shared_cluster.nodes:
        shared_cluster.kill(node)


def _data(place, gate, address="auto"):
    """RS, so that every worker may do every unit: 80 of them, of 3 seconds while the gate is there."""
    data = run_data(place, address=address, images=240, factory="slow", trigger=BATCH, seconds=0.1, gate=str(gate))
    data["partition"] = {"name": "none"}
    data["classifiers"] = data["classifiers"][:1]
    data["engine"]["cpus_per_worker"] = 1.0
    return data


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The digest that every run must end with."""
    directory = tmp_path_factory.mktemp("undisturbed")
    certify(parse_config(_data(directory / "run", directory / "no-gate", "inline")))
    return counts_digest(directory / "run")


class Run:
    """A run in a directory that is slow until `hurry`."""

    def __init__(self, directory):
        self._gate = directory / "gate"
        self._gate.touch()
        self.place = directory / "run"
        self._config = write_config(directory / "config.yaml", _data(self.place, self._gate))

    def start(self, cluster, **settings):
        self.driver = Driver(self._config, cluster.environment() | settings)

    def wait_until(self, condition, what):
        self.driver.wait_until(condition, what)

    def wait_for_work_on(self, node):
        self.driver.wait_until(lambda: node.workers(AT_WORK), f"a unit on {node.address}")

    def hurry(self):
        """Nothing is slow any more; ends with the exit code."""
        self._gate.unlink(missing_ok=True)
        return self.driver.wait(timeout=300)

    @property
    def text(self):
        return self.driver.text

    @property
    def retried(self):
        return [line for line in self.text.splitlines() if "the unit is tried again" in line]


@pytest.fixture
def run(tmp_path):
    run = Run(tmp_path)
    yield run
    if run.driver.poll() is None:
        run.driver.kill()
        run.driver.wait()


def test_a_node_that_joins_is_used_and_one_that_is_lost_gives_its_unit_back(cluster, run, undisturbed):
    first = cluster.add_node()
    run.start(cluster)
    run.wait_until(lambda: stored_parts(run.place) >= 1, "a part of the first node")
    second = cluster.add_node()
    run.wait_for_work_on(second)
    run.wait_for_work_on(first)
    cluster.kill(first)
    run.wait_until(lambda: run.retried, "the loss of a node to be seen")
    assert run.hurry() == 0, run.text
    assert len(run.retried) == 1, run.text
    assert counts_digest(run.place) == undisturbed


def test_a_node_that_hangs_is_found_dead_and_may_come_back(cluster, run, undisturbed):
    hung, other = cluster.add_node(), cluster.add_node()
    run.start(cluster)
    run.wait_for_work_on(other)
    run.wait_for_work_on(hung)
    cluster.stop(hung)
    run.wait_until(lambda: run.retried, "the hung node to be found dead")
    cluster.resume(hung)
    run.wait_until(lambda: not hung.is_alive, "the node to learn that it was given up")
    assert run.hurry() == 0, run.text
    assert len(run.retried) == 1, run.text
    assert counts_digest(run.place) == undisturbed


def test_a_node_that_is_drained_gets_no_new_worker(cluster, run, undisturbed):
    drained = cluster.add_node()
    run.start(cluster)
    run.wait_for_work_on(drained)
    cluster.drain(drained, seconds=600)
    other = cluster.add_node()
    run.wait_for_work_on(other)
    run.wait_for_work_on(drained)  # what works there goes on
    for worker in drained.workers():
        os.kill(worker, signal.SIGKILL)
    run.wait_until(lambda: not drained.is_alive, "the node to end, since it is idle")
    assert run.hurry() == 0, run.text
    assert len(run.retried) == 1, run.text
    assert counts_digest(run.place) == undisturbed


def test_a_lost_head_ends_the_driver_and_a_new_one_resumes(run, undisturbed):
    with RayCluster() as cluster:
        cluster.add_node()
        run.start(cluster)
        run.wait_until(lambda: stored_parts(run.place) >= 1, "a part")
        cluster.kill(cluster.head)
        assert run.driver.wait(timeout=300) == 1, run.text
        last = run.text.splitlines()[-1]
        assert last.startswith("error: Ray was lost"), run.text
        assert last.endswith("run the same command to resume"), run.text
        assert "Traceback" not in run.text
        for node in cluster.nodes:
            cluster.kill(node)
        before = stored_parts(run.place)
        assert 1 <= before < 80
        cluster.start_head()
        cluster.add_node()
        run.start(cluster)
        assert run.hurry() == 0, run.text
        assert resumed_line(before, 80 - before) in run.text
        assert counts_digest(run.place) == undisturbed
