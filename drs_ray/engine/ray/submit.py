"""`drs-ray submit`: submits a certification to a running Ray cluster, through the Jobs API of its dashboard."""

from __future__ import annotations

import asyncio
import logging
import os
import shlex
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from urllib.parse import urlsplit

import ray
from ray.exceptions import AuthenticationError
from ray.job_submission import JobStatus, JobSubmissionClient

from drs_ray.engine.ray.failures import last_line
from drs_ray.engine.ray.working_directory import check_size, checked_config, packed_files, path_within
from drs_ray.errors import ConfigError, EngineError, JobEndedError

CONNECT_SECONDS = 10.0
STOP_SECONDS = 60
"""`ray job stop` sends SIGTERM, and SIGKILL after `STOP_SECONDS`: a driver takes seconds to end its workers."""
_POLL_SECONDS = 0.2
_END_SECONDS = 10.0
_INTERRUPTED = 143  # 128 + SIGTERM, the exit code of an interrupted `drs-ray`


@dataclass(frozen=True)
class Submission:
    """A job that the cluster has accepted."""

    client: JobSubmissionClient
    job: str
    address: str
    output: str

    @property
    def how_to_go_on(self) -> tuple[str, ...]:
        """Commands to follow, stop and resume the job."""
        return (
            f"follow: ray job logs --address {self.address} --follow {self.job}",
            f"stop:   ray job stop --address {self.address} {self.job}",
            f"state:  drs-ray status {self.output}",
            "resume: the same drs-ray submit again, as a new job",
        )

    def follow(self, on_lines: Callable[[str], None]) -> None:
        """Pass on the job's output until the job ends.

        Raises:
            JobEndedError: the job failed or was stopped; with the exit code of its command.
            EngineError: the connection was lost. The job goes on.
        """
        try:
            asyncio.run(self._tail(on_lines))
            self._check_end()
        except (RuntimeError, OSError) as error:
            raise EngineError(
                f"{self.address}: the connection was lost ({last_line(error)}); the job {self.job} goes on; "
                f"{self.how_to_go_on[0]}"
            ) from error

    async def _tail(self, on_lines: Callable[[str], None]) -> None:
        async for lines in self.client.tail_job_logs(self.job):
            on_lines(lines)

    def _check_end(self) -> None:
        deadline = time.monotonic() + _END_SECONDS
        info = self.client.get_job_info(self.job)
        while not info.status.is_terminal() and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)  # the log ends a moment before the job does
            info = self.client.get_job_info(self.job)
        if info.status == JobStatus.SUCCEEDED:
            return
        if info.status == JobStatus.STOPPED:
            raise JobEndedError(f"job {self.job} was stopped; submit again to resume", _INTERRUPTED)
        if info.driver_exit_code is None:
            cause = last_line(RuntimeError(info.message or f"its state is {info.status}"))
            raise JobEndedError(f"job {self.job} did not run to its end: {cause}; submit again to resume", 1)
        raise JobEndedError(
            f"job {self.job} ended with exit code {info.driver_exit_code}: its last lines above say why",
            info.driver_exit_code,
        )


def submit_run(config_file: Path, overrides: Sequence[str], working_dir: Path, address: str) -> Submission:
    """Check, pack and submit `drs-ray certify CONFIG --address auto`.

    Args:
        config_file: below the working directory.
        overrides: `key=value`, as for `drs-ray certify --set`.
        working_dir: directory that Ray packs for the job, without entries of .gitignore and .rayignore.
        address: address of the cluster's dashboard, http://host:port.

    Raises:
        ConfigError: a mistake in the config, a file of the config outside the package, or a package that is too large;
            nothing was sent.
        EngineError: no dashboard answers, the token is refused, or the versions differ.
    """
    host, port = _endpoint(address)
    config_path = path_within(config_file, working_dir)
    files = packed_files(working_dir)
    config = checked_config(config_file, overrides, config_path, files, working_dir)
    check_size(files, working_dir)
    client = _connect(address, host, port)
    command = ["python", "-m", "drs_ray", "certify", config_path, "--address", "auto"]
    for override in overrides:
        command += ["--set", override]
    try:
        job = client.submit_job(
            entrypoint=shlex.join(command),
            runtime_env={
                "working_dir": str(working_dir),
                "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS)},
            },
            metadata={"output": config.output.uri, "drs-ray": metadata.version("drs-ray")},  # in the dashboard
        )
    except (RuntimeError, OSError) as error:
        raise EngineError(f"{address}: the cluster did not take the job: {last_line(error)}") from error
    return Submission(client, job, address, config.output.uri)


def _endpoint(address: str) -> tuple[str, int]:
    """Host and port of the dashboard."""
    try:
        parts = urlsplit(address)
        port = parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError:
        parts, port = urlsplit(""), 0
    if parts.scheme not in ("http", "https") or parts.hostname is None:
        raise ConfigError(
            f"--address: must be http://host:port of the cluster's dashboard, got {address!r}; "
            "http://127.0.0.1:8265 is that of a tunnel (docs/clusters.md)"
        )
    return parts.hostname, port


def _connect(address: str, host: str, port: int) -> JobSubmissionClient:
    try:  # Ray's client would wait for minutes
        socket.create_connection((host, port), CONNECT_SECONDS).close()
    except OSError as error:
        raise _nobody_at(address, error) from error
    for name in logging.root.manager.loggerDict:
        if name.startswith("ray."):
            logging.getLogger(name).setLevel(logging.ERROR)  # each has its own level, and reports the packing
    try:
        with _environment_without("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):  # they would override the address
            client = JobSubmissionClient(address)
    except AuthenticationError as error:
        raise EngineError(
            f"--address: the cluster at {address} does not let this process in "
            f"({error.message.splitlines()[0].split('. ')[0]}); set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN_PATH to a "
            "file with the cluster's token"
        ) from error
    except ConnectionError as error:  # for example a tunnel without a server at its end
        raise _nobody_at(address, error) from error
    except (RuntimeError, OSError, ValueError, KeyError) as error:
        raise EngineError(f"--address: what answers at {address} is no Ray dashboard ({last_line(error)})") from error
    version = client._server_ray_version
    if version != ray.__version__:
        raise EngineError(
            f"--address: the cluster at {address} has Ray {version}, this machine Ray {ray.__version__}; install the "
            f"cluster's version here (`pip install ray=={version}`), or submit from its head"
        )
    return client


def _nobody_at(address: str, error: OSError) -> EngineError:
    return EngineError(
        f"--address: no dashboard answers at {address} ({last_line(error)}); is the cluster up, and the tunnel to it "
        "open (docs/clusters.md)?"
    )


@contextmanager
def _environment_without(*names: str) -> Iterator[None]:
    kept = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(kept)
