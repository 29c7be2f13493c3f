"""Where workers go: nodes with the resources, labels and shares of GPUs that the config asks for, and no others."""

from __future__ import annotations

import os
import sys

import pytest

from drs_ray import certify
from tests.support.ray_cluster import WORKER_TITLE, RayCluster
from tests.support.runs import BATCH, Driver, counts_digest, drs_ray, run_config, run_data, write_config

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="nodes have loopback addresses of their own"),
]


@pytest.fixture(scope="module")
def cluster():
    """A node with CPUs alone, and one with something that the other has not: Ray's word for it is all that counts."""
    with RayCluster() as cluster:
        cluster.add_node(cpus=2)
        cluster.add_node(cpus=2, gpus=2, resources={"fast": 1}, labels={"zone": "a"})
        yield cluster


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    place = tmp_path_factory.mktemp("undisturbed") / "run"
    certify(run_config(place))
    return counts_digest(place)


@pytest.mark.parametrize(
    "asked", [{"resources": {"fast": 0.5}}, {"labels": {"zone": "in(a, b)"}}], ids=["resource", "label"]
)
def test_workers_go_only_where_they_are_asked_to(tmp_path, cluster, asked):
    loaded = tmp_path / "loaded"
    loaded.mkdir()
    data = run_data(tmp_path / "run", address="auto", factory="signs", directory=str(loaded))
    data["engine"] |= {"device": "cpu", "workers": 2} | asked
    done = drs_ray(["certify", str(write_config(tmp_path / "config.yaml", data))], env=cluster.environment())
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr
    _, special = cluster.nodes
    assert {path.name for path in loaded.iterdir()} == {str(os.getsid(0)), str(special.session)}


def test_shares_of_gpus_fill_a_node(tmp_path, cluster, undisturbed):
    """Four workers with half a GPU each on a node that has two, and CPUs for more; none where there is no GPU."""
    gate = tmp_path / "gate"
    gate.touch()
    data = run_data(tmp_path / "run", address="auto", factory="slow", trigger=BATCH, seconds=30, gate=str(gate))
    data["engine"] |= {"device": "cpu", "gpus_per_worker": 0.5, "cpus_per_worker": 0.25, "images_per_unit": 1}
    driver = Driver(write_config(tmp_path / "config.yaml", data), cluster.environment())
    plain, special = cluster.nodes
    try:
        driver.wait_until(lambda: len(special.workers(f"{WORKER_TITLE}.run")) == 4, "four workers at work")
        assert plain.workers() == []
        gate.unlink()
        assert driver.wait(timeout=300) == 0, driver.text
        assert counts_digest(tmp_path / "run") == undisturbed
    finally:
        driver.kill()
        driver.wait()


def test_what_nobody_has_is_named_and_waited_for(tmp_path, cluster):
    data = run_data(tmp_path / "run", address="auto", images=3)
    data["engine"] |= {"device": "cpu", "gpus_per_worker": 4, "stall_seconds": 3}
    data["engine"] |= {"resources": {"disk": 1}, "labels": {"zone": "nowhere"}}
    done = drs_ray(["certify", str(write_config(tmp_path / "config.yaml", data))], env=cluster.environment())
    assert done.returncode == 1, done.stderr
    needs = "0.5 CPUs and 4 GPUs and 1 disk per worker, on nodes labelled zone=nowhere"
    warning, error = [line for line in done.stderr.splitlines() if needs in line]
    assert "warning: no node of the cluster can hold a worker now: asked for " in warning
    assert "; there: 3 nodes with 4 CPUs, 2 GPUs, 0 disk, 0 of them so labelled; waiting up to 3 s " in warning
    assert error.startswith(
        f"error: no worker could be had for 3 s: asked for {needs}; "
        "free: 4 CPUs, 2 GPUs, 0 disk, 0 of 3 nodes so labelled; free or add such nodes"
    )
    assert error == done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
