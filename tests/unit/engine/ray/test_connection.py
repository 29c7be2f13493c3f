"""Addresses at which no Ray of this version answers: one line each, and soon."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
from ray._private import services
from ray._private.utils import check_version_info

from drs_ray.config import EngineConfig
from drs_ray.engine.ray import connection
from drs_ray.engine.ray.connection import connect
from drs_ray.errors import EngineError

REMEDY = r"; start one \(`ray start --head`\), .*RAY_AUTH_TOKEN_PATH.*, or use address local or inline$"
SETTINGS = bytes((0, 0, 6, 4, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 100))
"""How a gRPC server begins: at most 100 streams at a time."""


@pytest.fixture(autouse=True)
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever Ray runs on this machine is not seen, and one that is looked for in earnest is waited for in vain."""
    monkeypatch.setattr(connection.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(services, "find_gcs_addresses", list)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    _init(monkeypatch, lambda: pytest.fail("ray.init would wait for minutes"))


def _init(monkeypatch: pytest.MonkeyPatch, does: Callable[[], None]) -> None:
    monkeypatch.setattr(connection.ray, "init", lambda **_: does())


def _nobody() -> str:
    """An address at which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


@contextmanager
def _server(answer: Callable[[socket.socket], object]) -> Iterator[str]:
    """The address of a server that treats its one client so."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            client, _ = listening.accept()
            with client:
                client.recv(100)
                answer(client)

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"127.0.0.1:{listening.getsockname()[1]}"
        thread.join()


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_nobody_listens(scheme: str) -> None:
    address = scheme + _nobody()
    with pytest.raises(EngineError, match=rf"^engine\.address: no Ray answers at '{address}' \(.*refused\){REMEDY}"):
        connect(EngineConfig(address=address))


@pytest.mark.parametrize("answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"220 mail\r\n", b"no", b""])
@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_another_server_listens(scheme: str, answer: bytes) -> None:
    with (
        _server(lambda client: client.sendall(answer)) as address,
        pytest.raises(EngineError, match=rf"at '{scheme}{address}' \(another server listens there; .*\){REMEDY}"),
    ):
        connect(EngineConfig(address=scheme + address))


def test_what_listens_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "CONNECT_SECONDS", 0.2)
    ended = threading.Event()
    with _server(lambda client: ended.wait()) as address:
        with pytest.raises(EngineError, match=rf"at '{address}' \(timed out\){REMEDY}"):
            connect(EngineConfig(address=address))
        ended.set()


def test_auto_is_what_the_environment_names(monkeypatch: pytest.MonkeyPatch) -> None:
    address = _nobody()
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(EngineError, match=rf"no Ray answers at '{address}' \(.*refused\){REMEDY}"):
        connect(EngineConfig(address="auto"))


def test_auto_after_the_head_was_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`ray start` notes its address in a file, which outlives a head that does not end in peace."""
    address = _nobody()
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "ray_current_cluster").write_text(address)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    with pytest.raises(EngineError, match=rf"no Ray answers at '{address}' \(.*refused\){REMEDY}"):
        connect(EngineConfig(address="auto"))


def test_auto_where_there_was_never_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    with pytest.raises(EngineError, match=rf"no Ray answers at 'auto' \(Could not find any running Ray .*\){REMEDY}"):
        connect(EngineConfig(address="auto"))


def test_a_cluster_of_another_version(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = {"ray_version": "2.9.3", "python_version": "3.10.12"}
    _init(monkeypatch, lambda: check_version_info(theirs, "Ray Client"))  # what Ray itself raises
    found = r"has Ray 2\.9\.3 on Python 3\.10\.12, this process Ray \S+ on Python 3\.\S+; install the cluster's"
    with (
        _server(lambda client: client.sendall(SETTINGS)) as address,
        pytest.raises(EngineError, match=rf"^engine\.address: the cluster at '{address}' {found}"),
    ):
        connect(EngineConfig(address=address))


def test_a_ray_that_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise ConnectionError("line 1\nInvalid auth token")

    _init(monkeypatch, refuse)
    with (
        _server(lambda client: client.sendall(SETTINGS)) as address,
        pytest.raises(EngineError, match=rf"no Ray answers at '{address}' \(Invalid auth token\){REMEDY}"),
    ):
        connect(EngineConfig(address=address))


def test_a_process_that_is_connected_stays_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection.ray, "is_initialized", lambda: True)
    assert not connect(EngineConfig(address=_nobody()))


def test_a_local_ray_that_cannot_start_is_not_advised_to_be_local(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(error: Exception) -> str:
        def raises() -> None:
            raise error

        _init(monkeypatch, raises)
        with pytest.raises(EngineError) as caught:
            connect(EngineConfig(address="local"))
        line = str(caught.value)
        assert line.startswith(f"engine.address: no local Ray can be started on this machine ({error}); ")
        return line.partition("); ")[2]

    long = OSError("validate_socket_filename failed: AF_UNIX path length cannot exceed 107 bytes: /long/plasma_store")
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    assert fails(long) == "set TMPDIR to a directory with a shorter path, for example /tmp, or use address inline"
    monkeypatch.setenv("RAY_TMPDIR", "/long")
    assert fails(long).startswith("set RAY_TMPDIR to a directory")
    busy = fails(Exception("The current node timed out during startup."))  # Ray raises just that
    assert busy.startswith("try again where it is less busy")
    assert busy.endswith("or use address inline")


def test_ray_makes_its_sockets_below_the_directory_that_the_remedy_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray._common.utils import get_default_system_temp_dir

    for name in ("RAY_TMPDIR", "TMPDIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
    assert get_default_system_temp_dir() == str(tmp_path / "RAY_TMPDIR")
    monkeypatch.delenv("RAY_TMPDIR")
    assert get_default_system_temp_dir() == str(tmp_path / "TMPDIR")


def test_auto_says_which_ray_it_joined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _init(monkeypatch, lambda: None)
    monkeypatch.setattr(connection.ray, "cluster_resources", lambda: {"CPU": 6.0, "memory": 1.0})
    monkeypatch.setattr(connection.ray, "nodes", lambda: [{"Alive": True}, {"Alive": False}])
    context = SimpleNamespace(gcs_address="10.0.0.7:6379")
    monkeypatch.setattr(connection.ray, "get_runtime_context", lambda: context)
    monkeypatch.setattr(connection, "_check_answers", lambda address: None)
    monkeypatch.setattr(connection, "get_ray_address_from_environment", lambda *given: context.gcs_address)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    notes: list[str] = []
    assert connect(EngineConfig(address="auto"), notes.append)
    assert notes == [
        "engine.address: auto: joined the Ray at 10.0.0.7:6379 (1 node, 6 CPUs, 0 GPUs); RAY_ADDRESS would name another"
    ]
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.7:6379")
    assert connect(EngineConfig(address="auto"), notes.append)
    assert connect(EngineConfig(address="local"), notes.append)
    assert len(notes) == 1
