"""The same run in a directory and on a real S3 server: the same certificates, and clear errors when S3 says no."""

from __future__ import annotations

import os

import pytest

from drs_ray import certify, read_certificates
from drs_ray.config import parse_config
from tests.servers import BUCKET
from tests.support.runs import counts_digest, drs_ray, drs_ray_here, resumed_line, run_config, run_data, write_config

pytestmark = pytest.mark.s3


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    """The run in a directory."""
    return certify(run_config(tmp_path_factory.mktemp("local") / "run"))


def _on_s3(name: str, endpoint: str, address: str = "inline"):
    data = run_data(f"s3://{BUCKET}/{name}", address=address)
    data["output"] = {"uri": data["output"], "endpoint_url": endpoint}
    return data


def test_inline_run_on_s3_equals_the_local_one(seaweed, local):
    result = certify(parse_config(_on_s3("inline", seaweed.endpoint)))
    assert result.certificates.equals(local.certificates)
    assert read_certificates(result.uri, seaweed.endpoint).equals(local.certificates)


@pytest.mark.ray
def test_ray_workers_write_to_s3_and_a_second_start_resumes(tmp_path, seaweed, local, ray_directory):
    config = write_config(tmp_path / "config.yaml", _on_s3("ray", seaweed.endpoint, "local"))
    environment = os.environ | {"RAY_TMPDIR": ray_directory}  # with the server's credentials
    done = drs_ray(["certify", str(config)], env=environment)
    assert done.returncode == 0, done.stderr
    again = drs_ray(["certify", str(config)], env=environment)
    assert resumed_line(8, 0) in again.stderr
    assert read_certificates(f"s3://{BUCKET}/ray", seaweed.endpoint).equals(local.certificates)
    status = drs_ray_here(["status", f"s3://{BUCKET}/ray", "--endpoint-url", seaweed.endpoint])
    assert "8 of 8 (100 %)" in status.stdout


def test_without_credentials(tmp_path, seaweed_server):
    config = write_config(tmp_path / "config.yaml", _on_s3("nobody", seaweed_server.endpoint))
    done = drs_ray_here(["certify", str(config)])
    assert done.returncode == 1
    assert "credentials" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_without_a_bucket(tmp_path, seaweed):
    data = _on_s3("x", seaweed.endpoint)
    data["output"]["uri"] = "s3://no-such-bucket-here/run"
    done = drs_ray_here(["certify", str(write_config(tmp_path / "config.yaml", data))])
    assert done.returncode == 1
    assert "no-such-bucket-here" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_counts_on_s3_have_the_local_digest(seaweed, local):
    from drs_ray.storage import open_store

    certify(parse_config(_on_s3("digest", seaweed.endpoint)))
    assert counts_digest(open_store(f"s3://{BUCKET}/digest", seaweed.endpoint)) == counts_digest(local.uri)
