"""Attaching to a Ray cluster that somebody else started, with token authentication as Ray 2.60 has it by default."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import sysconfig
import time
from pathlib import Path

import pytest

from drs_ray import certify, read_certificates
from tests.support.runs import drs_ray, run_config, run_data, write_config

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture
def head(tmp_path, ray_directory):
    """A head node of its own on loopback; yields the environment of its clients."""
    token = tmp_path / "token"
    token.write_text(secrets.token_hex(32))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = os.environ | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
    options = {
        "port": port,
        "node-ip-address": "127.0.0.1",
        "num-cpus": 2,
        "include-dashboard": "false",
        "temp-dir": f"{ray_directory}/head",
        "min-worker-port": 0,
        "max-worker-port": 0,
    }
    command = [Path(sysconfig.get_path("scripts"), "ray"), "start", "--head", "--block", "--disable-usage-stats"]
    with (tmp_path / "head.log").open("w") as log:
        process = subprocess.Popen(
            [*command, *(f"--{name}={value}" for name, value in options.items())],
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        deadline = time.monotonic() + 60
        while "Ray runtime started" not in (tmp_path / "head.log").read_text():
            assert process.poll() is None, (tmp_path / "head.log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.2)
        yield environment | {"RAY_ADDRESS": f"127.0.0.1:{port}"}
    finally:
        process.send_signal(signal.SIGTERM)  # --block ends the node's processes with itself
        process.wait(timeout=60)


def test_a_run_on_a_cluster_that_runs_already(tmp_path, head):
    undisturbed = certify(run_config(tmp_path / "undisturbed", images=6))
    config = write_config(tmp_path / "config.yaml", run_data(tmp_path / "run", address="auto", images=6))
    done = drs_ray(["certify", str(config)], env=head)
    assert done.returncode == 0, done.stderr
    assert read_certificates(str(tmp_path / "run")).equals(undisturbed.certificates)
    other = tmp_path / "other-token"
    other.write_text(secrets.token_hex(32))
    refused = drs_ray(
        ["certify", str(config), "--set", f"output={tmp_path}/2"], env=head | {"RAY_AUTH_TOKEN_PATH": str(other)}
    )
    assert refused.returncode == 1
    assert "RAY_AUTH_TOKEN_PATH" in refused.stderr.splitlines()[-1]
