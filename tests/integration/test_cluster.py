"""Attaching to a Ray cluster that somebody else started, with token authentication as Ray 2.60 has it by default."""

from __future__ import annotations

import secrets
import sys

import pytest

from drs_ray import certify, read_certificates
from tests.support.ray_cluster import RayCluster
from tests.support.runs import drs_ray, run_config, run_data, write_config

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="nodes have loopback addresses of their own"),
]


def test_a_run_on_a_cluster_that_runs_already(tmp_path):
    undisturbed = certify(run_config(tmp_path / "undisturbed", images=6))
    config = write_config(tmp_path / "config.yaml", run_data(tmp_path / "run", address="auto", images=6))
    with RayCluster(cpus=2) as cluster:
        environment = cluster.environment()
        done = drs_ray(["certify", str(config)], env=environment)
        assert done.returncode == 0, done.stderr
        assert read_certificates(str(tmp_path / "run")).equals(undisturbed.certificates)
        other = tmp_path / "other-token"
        other.write_text(secrets.token_hex(32))
        environment["RAY_AUTH_TOKEN_PATH"] = str(other)
        refused = drs_ray(["certify", str(config), "--set", f"output={tmp_path}/2"], env=environment)
    assert refused.returncode == 1
    assert "RAY_AUTH_TOKEN_PATH" in refused.stderr.splitlines()[-1]
