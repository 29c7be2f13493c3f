"""Joins or starts a Ray. An address without a Ray is refused within seconds; Ray itself would take 14 minutes."""

from __future__ import annotations

import os
import re
import signal
import socket
import threading
from collections.abc import Callable
from typing import Any

import ray
from ray._private.services import get_ray_address_from_environment  # no public function says what `auto` stands for

from drs_ray.config import EngineConfig
from drs_ray.engine.ray.failures import last_line, ray_or_resume
from drs_ray.errors import DrsError, EngineError, counted

CONNECT_SECONDS = 10.0
_HTTP2_BEGIN = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
"""First bytes of a gRPC client (RFC 9113, 3.4): a fixed text and empty settings. The server sends its settings."""
_SETTINGS = 4
_FRAME_TYPE = 3


@ray_or_resume()
def connect(engine: EngineConfig, on_note: Callable[[str], None] = lambda note: None) -> bool:
    """Start a local Ray, or attach to a running one. Returns False if this process is already connected.

    on_note: called with the address of the joined Ray, if neither the config nor RAY_ADDRESS names it.

    Raises:
        EngineError: no Ray answers at the address, its version differs, or no Ray can be started on this machine.
    """
    if ray.is_initialized():
        return False
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    in_main = threading.current_thread() is threading.main_thread()
    on_sigterm = signal.getsignal(signal.SIGTERM) if in_main else None  # ray.init installs its own handler
    options: dict[str, Any] = {"include_dashboard": False} if engine.address == "local" else {}
    try:
        _check_answers(get_ray_address_from_environment("auto", None) if engine.address == "auto" else engine.address)
        ray.init(address=engine.address, log_to_driver=False, logging_level="ERROR", **options)
        if engine.address == "auto" and not os.environ.get("RAY_ADDRESS"):
            on_note(_joined_text())
    except (DrsError, SystemError):  # a signal handler may cause a SystemError (`ray_or_resume`)
        raise
    except Exception as error:  # Ray raises ConnectionError, RuntimeError, ValueError, OSError and Exception
        versions = re.findall(r"Ray: (\S+)\s+Python: (\S+)", str(error))
        if "Version mismatch" in str(error) and len(versions) == 2:
            (their_ray, their_python), (ray_, python) = versions
            raise EngineError(
                f"engine.address: the cluster at '{engine.address}' has Ray {their_ray} on Python {their_python}, this "
                f"process Ray {ray_} on Python {python}; install the cluster's versions here"
            ) from error
        if engine.address == "local":
            raise _cannot_start(last_line(error)) from error
        raise _nobody_at(engine.address, last_line(error)) from error
    finally:
        if on_sigterm is not None:
            signal.signal(signal.SIGTERM, on_sigterm)
    return True


def _joined_text() -> str:
    """Description of the Ray that `auto` found."""
    resources = ray.cluster_resources()
    nodes = sum(node["Alive"] for node in ray.nodes())
    return (
        f"engine.address: auto: joined the Ray at {ray.get_runtime_context().gcs_address} ({counted(nodes, 'node')}, "
        f"{resources.get('CPU', 0.0):g} CPUs, {resources.get('GPU', 0.0):g} GPUs); RAY_ADDRESS would name another"
    )


def _check_answers(address: str) -> None:
    """Check that a gRPC server, such as Ray, listens at host:port or ray://host:port.

    Raises:
        EngineError: nothing listens there, or another kind of server.
    """
    found = re.fullmatch(r"(?:ray://)?([^\s:/]+):(\d+)", address)
    if found is None:
        return
    host, port = found[1], int(found[2])
    own = [ray.util.get_node_ip_address()] if host in ("localhost", "127.0.0.1") else []  # as Ray resolves it
    reasons = []
    for candidate in (host, *own):
        try:
            if _is_grpc(candidate, port):
                return
            reasons.append("another server listens there; the dashboard's port is not the one")
        except OSError as error:
            reasons.append(str(error))
    raise _nobody_at(address, reasons[0])


def _is_grpc(host: str, port: int) -> bool:
    with socket.create_connection((host, port), CONNECT_SECONDS) as connection:
        if os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true"):
            return True  # only Ray itself has the certificates
        connection.sendall(_HTTP2_BEGIN)
        answer = b""
        while len(answer) <= _FRAME_TYPE and (more := connection.recv(16)):
            answer += more
    return len(answer) > _FRAME_TYPE and answer[_FRAME_TYPE] == _SETTINGS


def _cannot_start(reason: str) -> EngineError:
    if "AF_UNIX" in reason:  # the path of a socket has room for about 50 characters before Ray's own part
        key = "RAY_TMPDIR" if os.environ.get("RAY_TMPDIR") else "TMPDIR"
        remedy = f"set {key} to a directory with a shorter path, for example /tmp, or use address inline"
    else:
        remedy = "try again where it is less busy, see Ray's logs (/tmp/ray/session_latest/logs), or use address inline"
    return EngineError(f"engine.address: no local Ray can be started on this machine ({reason}); {remedy}")


def _nobody_at(address: str, reason: str) -> EngineError:
    return EngineError(
        f"engine.address: no Ray answers at '{address}' ({reason}); "
        "start one (`ray start --head`), give it the cluster's token (RAY_AUTH_MODE=token, RAY_AUTH_TOKEN_PATH), "
        "or use address local or inline"
    )
