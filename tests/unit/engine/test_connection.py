"""Addresses at which no Ray of this version answers: one line each, and soon."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from ray._private import services
from ray._private.utils import check_version_info

from drs_ray.config import EngineConfig
from drs_ray.engine import connection
from drs_ray.engine.connection import connect
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
