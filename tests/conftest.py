"""Fixtures for all tests: no way to a real AWS account, and S3 servers on loopback."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import closing

import pytest
from hypothesis import settings

from tests import servers
from tests.servers import S3Server

# One torch thread, in this process and in those that tests start: on a busy machine several threads wait for each other
# in every small operation. Set before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

settings.register_profile("no deadline", deadline=None)  # of an example: a busy machine may stall for any time
settings.load_profile("no deadline")


def pytest_configure(config: pytest.Config) -> None:
    """Hide GPUs, unless the tests of GPUs are chosen: what the others expect is a machine without one."""
    if config.option.markexpr != "gpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


@pytest.fixture(scope="session", autouse=True)
def no_real_aws(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Takes the user's own credentials, profiles and endpoints away, so that no test can touch a real bucket."""
    nowhere = tmp_path_factory.mktemp("aws") / "no-such-file"
    with pytest.MonkeyPatch.context() as patch:
        for name in (
            "AWS_ACCESS_KEY_ID",
            "AWS_SECRET_ACCESS_KEY",
            "AWS_SESSION_TOKEN",
            "AWS_PROFILE",
            "AWS_DEFAULT_PROFILE",
            "AWS_ENDPOINT_URL",
            "AWS_ENDPOINT_URL_S3",
            "AWS_MAX_ATTEMPTS",
            "AWS_ROLE_ARN",
            "AWS_WEB_IDENTITY_TOKEN_FILE",
            "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
            "AWS_CONTAINER_CREDENTIALS_FULL_URI",
        ):
            patch.delenv(name, raising=False)
        patch.setenv("AWS_CONFIG_FILE", str(nowhere))
        patch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(nowhere))
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        patch.setenv("NO_PROXY", "127.0.0.1,localhost")
        patch.setenv("no_proxy", "127.0.0.1,localhost")
        yield


@pytest.fixture(scope="session")
def moto_server() -> Iterator[S3Server]:
    """One moto for the session; the environment is as it was."""
    with servers.moto_server() as server:
        yield server


@pytest.fixture(scope="session")
def seaweed_server() -> Iterator[S3Server]:
    """One SeaweedFS for the session; the environment is as it was."""
    with servers.seaweed_server() as server:
        yield server


@pytest.fixture
def moto_endpoint(moto_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of moto, with credentials (but not the address) in the environment."""
    with closing(moto_server.client()) as client:
        client.create_bucket(Bucket=servers.BUCKET)  # a test of moto's AWS empties all of moto
    return _use(moto_server, monkeypatch).endpoint


@pytest.fixture
def seaweed(seaweed_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    """SeaweedFS, with its credentials (but not its address) in the environment."""
    return _use(seaweed_server, monkeypatch)


def _use(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    for name, value in server.environment.items():
        if name != "AWS_ENDPOINT_URL":  # a test says which server it means
            monkeypatch.setenv(name, value)
    return server


@pytest.fixture(scope="session")
def ray_directory() -> Iterator[str]:
    """A short directory of the tests' own for Ray's sockets and logs (socket paths have a length limit)."""
    with tempfile.TemporaryDirectory(prefix="drs-", ignore_cleanup_errors=True) as directory:
        yield directory


@pytest.fixture(scope="module")
def local_ray(ray_directory: str) -> Iterator[None]:
    """One local Ray for the tests of a module; every run in this process attaches to it."""
    import ray

    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, _temp_dir=ray_directory)
    yield
    ray.shutdown()
