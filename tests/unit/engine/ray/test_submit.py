"""Submitting a run: what is refused in one line, against a dashboard that a few lines imitate."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray.job_submission import JobStatus

from drs_ray.cli import main
from drs_ray.engine.ray import submit
from drs_ray.engine.ray.submit import Submission, submit_run
from drs_ray.errors import ConfigError, DrsError, EngineError, JobEndedError
from tests.support.runs import run_data, write_config


class Dashboard(ThreadingHTTPServer):
    """Answers as told; keeps what it was asked."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.version: dict[str, object] = {"version": "4", "ray_version": ray.__version__}
        self.status = 200
        self.submitted: list[dict[str, Any]] = []
        self.paths: list[str] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Dashboard

    def _answer(self, content: object, status: int = 200) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        self.server.paths.append(self.path)
        self._answer(self.server.version, self.server.status)

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self._answer({})

    def do_POST(self) -> None:
        self.server.submitted.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self._answer({"job_id": "raysubmit_1", "submission_id": "raysubmit_1"}, self.server.status)

    def log_message(self, format: str, *arguments: object) -> None:
        """Nothing on the tests' output."""


@pytest.fixture
def dashboard(monkeypatch: pytest.MonkeyPatch) -> Iterator[Dashboard]:
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    with Dashboard() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def work(tmp_path: Path) -> Path:
    write_config(tmp_path / "run.yaml", run_data("s3://bucket/run"))
    return tmp_path


def _refused(work: Path, address: str, *overrides: str) -> DrsError:
    with pytest.raises(DrsError) as caught:
        submit_run(work / "run.yaml", overrides, work, address)
    assert "\n" not in str(caught.value)
    return caught.value


def test_the_job_is_certify_with_the_same_arguments(
    work: Path, dashboard: Dashboard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")  # a cluster of another shell's: the address given wins
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:1")
    found = submit_run(work / "run.yaml", ["noise.seed=1", "output=s3://bucket/a b"], work, dashboard.address)
    (job,) = dashboard.submitted
    assert job["entrypoint"] == (
        "python -m drs_ray certify run.yaml --address auto --set noise.seed=1 --set 'output=s3://bucket/a b'"
    )
    assert job["runtime_env"]["working_dir"].startswith("gcs://")
    assert job["runtime_env"]["env_vars"] == {"RAY_JOB_STOP_WAIT_TIME_S": "60"}
    assert job["metadata"]["output"] == "s3://bucket/a b"
    assert found.how_to_go_on[:2] == (
        f"follow: ray job logs --address {dashboard.address} --follow raysubmit_1",
        f"stop:   ray job stop --address {dashboard.address} raysubmit_1",
    )


def test_nobody_answers(work: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))  # and does not listen
        error = _refused(work, f"http://127.0.0.1:{free.getsockname()[1]}")
    assert isinstance(error, EngineError)
    assert "no dashboard answers at http://127.0.0.1:" in str(error)
    assert "tunnel" in str(error)


@pytest.mark.parametrize("address", ["127.0.0.1:8265", "ray://127.0.0.1:10001", "http://", "http://host:port"])
def test_no_address(work: Path, address: str) -> None:
    error = _refused(work, address)
    assert isinstance(error, ConfigError)
    assert f"must be http://host:port of the cluster's dashboard, got '{address}'" in str(error)


def test_another_version_names_both(work: Path, dashboard: Dashboard) -> None:
    dashboard.version = {"version": "4", "ray_version": "2.40.0"}
    assert f"has Ray 2.40.0, this machine Ray {ray.__version__}; install" in str(_refused(work, dashboard.address))
    assert dashboard.submitted == []


@pytest.mark.parametrize(("version", "status"), [({"not": "ray"}, 200), ({}, 500)])
def test_something_else_answers(work: Path, dashboard: Dashboard, version: dict[str, object], status: int) -> None:
    dashboard.version, dashboard.status = version, status
    assert "is no Ray dashboard" in str(_refused(work, dashboard.address))


def test_a_tunnel_that_ends_nowhere(work: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def hang_up() -> None:
            while True:
                try:
                    server.accept()[0].close()
                except OSError:
                    return

        thread = threading.Thread(target=hang_up)
        thread.start()
        error = _refused(work, f"http://127.0.0.1:{server.getsockname()[1]}")
        server.shutdown(socket.SHUT_RDWR)
        thread.join()
    assert "no dashboard answers at http://127.0.0.1:" in str(error)


@pytest.mark.parametrize("status", [401, 403])
def test_no_token_or_a_wrong_one(work: Path, dashboard: Dashboard, status: int) -> None:
    dashboard.status = status
    error = str(_refused(work, dashboard.address))
    assert "does not let this process in" in error
    assert "RAY_AUTH_TOKEN_PATH" in error


def test_a_bad_config_is_not_sent(work: Path, dashboard: Dashboard) -> None:
    assert "noise.sed: unknown key; did you mean seed?" in str(_refused(work, dashboard.address, "noise.sed=1"))
    assert "is not there" in str(_refused(work, dashboard.address, "classifiers.0.checkpoint=none.pt"))
    assert dashboard.paths == []


@pytest.mark.parametrize(
    ("wrong", "code", "said"),
    [
        ("address", 1, "error: --address: no dashboard answers at http://127.0.0.1:1 "),
        ("token", 1, "does not let this process in"),
        ("version", 1, f"has Ray 2.40.0, this machine Ray {ray.__version__}; install the cluster's version here"),
        (
            "size",
            2,
            "must pack to less than 100 MiB, is 101 MiB; largest: weights.bin 101 MiB; name them in ",
        ),
        ("config", 2, "elsewhere/run.yaml: must be in the working directory"),
    ],
)
def test_the_command_ends_with_one_line_and_a_code(
    wrong: str, code: int, said: str, work: Path, dashboard: Dashboard, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    address, config = dashboard.address, "run.yaml"
    if wrong == "address":
        address = "http://127.0.0.1:1"
    elif wrong == "token":
        dashboard.status = 401
    elif wrong == "version":
        dashboard.version = {"version": "4", "ray_version": "2.40.0"}
    elif wrong == "size":
        with (work / "weights.bin").open("wb") as file:
            file.truncate(101 * 2**20)
    elif wrong == "config":
        (work / "elsewhere").mkdir()
        (work / "run.yaml").rename(work / "elsewhere" / "run.yaml")
        (work / "work").mkdir()
        monkeypatch.chdir(work / "work")
        config = "../elsewhere/run.yaml"
    if wrong != "config":
        monkeypatch.chdir(work)
    monkeypatch.setattr("sys.argv", ["drs-ray", "submit", config, "--address", address])
    with pytest.raises(SystemExit) as ended:
        main()
    printed = capsys.readouterr()
    assert ended.value.code == code
    assert printed.out == ""
    assert printed.err.startswith("error: ")
    assert said in printed.err
    assert printed.err.count("\n") == 1
    assert dashboard.submitted == []


class Client:
    """A job's states, one for each time it is asked."""

    def __init__(self, *infos: SimpleNamespace) -> None:
        self._infos = list(infos)

    async def tail_job_logs(self, job: str) -> Any:
        yield "a line\n"
        if not self._infos:
            raise RuntimeError("closed unexpectedly")

    def get_job_info(self, job: str) -> SimpleNamespace:
        return self._infos.pop(0) if len(self._infos) > 1 else self._infos[0]


def _info(status: JobStatus, code: int | None = None, message: str | None = None) -> SimpleNamespace:
    return SimpleNamespace(status=status, driver_exit_code=code, message=message)


def _follow(*infos: SimpleNamespace) -> list[str]:
    printed: list[str] = []
    client: Any = Client(*infos)
    Submission(client, "job", "http://here", "s3://bucket/run").follow(printed.append)
    return printed


def test_following_a_job_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submit, "_POLL_SECONDS", 0.0)
    assert _follow(_info(JobStatus.RUNNING), _info(JobStatus.SUCCEEDED, 0)) == ["a line\n"]


@pytest.mark.parametrize(
    ("info", "code", "said"),
    [
        (_info(JobStatus.FAILED, 3), 3, "ended with exit code 3"),
        (_info(JobStatus.STOPPED), 143, "was stopped; submit again to resume"),
        (_info(JobStatus.FAILED, None, "first\nno room for the runtime env"), 1, "no room for the runtime env"),
    ],
)
def test_a_job_that_does_not_end_well(info: SimpleNamespace, code: int, said: str) -> None:
    with pytest.raises(JobEndedError, match=said) as caught:
        _follow(info)
    assert caught.value.exit_code == code


def test_a_connection_that_is_lost_leaves_the_job() -> None:
    with pytest.raises(
        EngineError, match=r"the connection was lost \(closed unexpectedly\); the job job goes on; foll"
    ):
        _follow()


def test_interrupting_leaves_the_job(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    class Endless(Client):
        async def tail_job_logs(self, job: str) -> Any:
            yield "a line\n"
            signal.raise_signal(signal.SIGINT)
            await asyncio.sleep(60)

    client: Any = Endless()
    found = Submission(client, "raysubmit_1", "http://here:1", "s3://bucket/run")
    monkeypatch.setattr(submit, "submit_run", lambda *arguments: found)
    monkeypatch.setattr("sys.argv", ["drs-ray", "submit", "run.yaml"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 130
    assert capsys.readouterr().err == (
        "error: interrupted by SIGINT; the job raysubmit_1 goes on; "
        "stop:   ray job stop --address http://here:1 raysubmit_1\n"
    )
