"""Watching the head through a real port, by a clock of the test's own."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import pytest

from drs_ray.engine.ray import head_watch
from drs_ray.engine.ray.head_watch import LOST_AFTER_SECONDS, Head
from drs_ray.errors import EngineError


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(head_watch, "time", clock)
    return clock


def connected(monkeypatch: pytest.MonkeyPatch, address: str, client: bool = False) -> None:
    """This process is connected to a cluster whose head has this address."""
    monkeypatch.setattr(
        head_watch,
        "ray",
        SimpleNamespace(
            util=SimpleNamespace(client=SimpleNamespace(ray=SimpleNamespace(is_connected=lambda: client))),
            get_runtime_context=lambda: SimpleNamespace(gcs_address=address),
        ),
    )


@contextmanager
def listening(host: str, port: int = 0) -> Iterator[int]:
    """Something that takes connections; yields its port."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, port), family=family) as server:
        yield server.getsockname()[1]


def test_a_head_that_listens_answers(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    with listening("127.0.0.1") as port:
        connected(monkeypatch, f"127.0.0.1:{port}")
        watched = Head()
        for _ in range(5):
            clock.now += 10 * LOST_AFTER_SECONDS
            assert watched.answers()


def test_a_head_with_an_ipv6_address(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    try:
        with listening("::1") as port:
            connected(monkeypatch, f"[::1]:{port}")
            assert Head().answers()
    except OSError:
        pytest.skip("no IPv6 here")


def test_a_head_that_is_silent_is_waited_for_and_then_lost(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    with listening("127.0.0.1") as port:
        connected(monkeypatch, f"127.0.0.1:{port}")
        watched = Head()
        clock.now += 500.0
        assert watched.answers()
    clock.now += LOST_AFTER_SECONDS - 1
    assert not watched.answers()
    clock.now += 1
    with pytest.raises(
        EngineError,
        match=rf"^Ray was lost \(its head at 127\.0\.0\.1:{port} gave no answer for 30 s: .*refused\); "
        "what is stored is kept: start Ray again and run the same command to resume$",
    ) as caught:
        watched.answers()
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value.__cause__, ConnectionRefusedError)


def test_a_head_that_comes_back_is_given_its_time_again(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    with listening("127.0.0.1") as port:
        connected(monkeypatch, f"127.0.0.1:{port}")
    watched = Head()
    for _ in range(3):
        clock.now += LOST_AFTER_SECONDS - 1
        assert not watched.answers()
        with listening("127.0.0.1", port):
            assert watched.answers()


def test_a_client_is_told_by_ray_itself(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    """Under ray:// the address is the cluster's own, which this machine need not reach."""
    connected(monkeypatch, "10.0.0.1:6379", client=True)
    monkeypatch.setattr(socket, "create_connection", lambda *address: pytest.fail("looked for a head"))
    watched = Head()
    clock.now += 10 * LOST_AFTER_SECONDS
    assert watched.answers()
