"""A reverse proxy on loopback that spoils requests to an S3 server as a script says, and counts what it did.

    with FaultProxy(server.endpoint, Rule(Fault.SLOW_DOWN, "PUT", "/counts/", nth={3, 4})) as proxy:
        store = open_store("s3://bucket/run", proxy.endpoint)
    assert proxy.counts == {Fault.SLOW_DOWN: 2}

Headers and bodies pass as they are, because the signature covers them (Host, the proxy's address, among them).
"""

from __future__ import annotations

import http.client
import random
import socket
import struct
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass
from enum import StrEnum
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

UPSTREAM_SECONDS = 60
HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "expect"}


class Fault(StrEnum):
    """What can be done to a request."""

    SLOW_DOWN = "503 SlowDown"
    UNAVAILABLE = "503 ServiceUnavailable"
    INTERNAL = "500 InternalError"
    EXPIRED_TOKEN = "400 ExpiredToken"
    ACCESS_DENIED = "403 AccessDenied"
    BAD_SIGNATURE = "403 SignatureDoesNotMatch"
    BAD_REQUEST = "400 InvalidArgument"
    NOT_IMPLEMENTED = "501 NotImplemented"
    RESET = "reset before it is forwarded"
    CUT_UPLOAD = "reset after half of it was forwarded"
    LOST_REPLY = "reset after it was forwarded"
    TRUNCATED = "half of the reply"
    STALL = "no reply"
    DELAY = "a late reply"
    UNREACHABLE = "reset since the server is down"
    """Not for rules: counted when the server itself does not answer."""


_ANSWERS = (
    Fault.SLOW_DOWN,
    Fault.UNAVAILABLE,
    Fault.INTERNAL,
    Fault.EXPIRED_TOKEN,
    Fault.ACCESS_DENIED,
    Fault.BAD_SIGNATURE,
    Fault.BAD_REQUEST,
    Fault.NOT_IMPLEMENTED,
)


@dataclass(frozen=True, eq=False)
class Rule:
    """Which requests meet a fault: those with this method (empty: any) whose path contains `path`.

    header: only those with a header whose name, in lower case, begins so.
    nth: which of these, counted from 1; None: all. chance: of each, in [0, 1]. seconds: of a stall or a delay.
    before: called before the fault takes place, in the proxy's thread.
    """

    fault: Fault
    method: str = ""
    path: str = ""
    header: str = ""
    nth: Collection[int] | None = None
    chance: float = 1.0
    seconds: float = 0.0
    before: Callable[[], object] | None = None


class FaultProxy:
    """A proxy that runs while the context is open. Its attributes may be read and set at any time.

    `endpoint` is its address. `counts` says how often each fault was done, `requests` what came, as (method, path).
    `enabled` switches all faults on and off. The first rule that applies to a request decides. Chances are drawn from
    `seed`, the rule, and the request's method, path and number, so that they do not depend on the order of threads.
    """

    def __init__(self, upstream: str, *rules: Rule, seed: int = 0) -> None:
        address = urlsplit(upstream)
        assert address.hostname is not None
        self._upstream = (address.hostname, address.port or 80)
        self._seed = seed
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._server = _Server(self)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        self.enabled = True
        self.counts: Counter[Fault] = Counter()
        self.requests: list[tuple[str, str]] = []
        self.play(*rules)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._server.shutdown()
        self._thread.join()
        self._server.end_connections()
        self._server.server_close()  # waits for the threads of the connections

    def play(self, *rules: Rule) -> None:
        """Play these rules from now on, and count their requests from 1."""
        with self._lock:
            self._rules = rules
            self._matched: Counter[Rule] = Counter()
            self._drawn: Counter[tuple[Rule, str, str]] = Counter()

    def count(self, method: str, path: str = "") -> int:
        """How many requests with this method and `path` in their path have come."""
        return sum(1 for came in list(self.requests) if came[0] == method and path in came[1])

    def wait_for(self, fault: Fault, count: int = 1, seconds: float = 60.0) -> None:
        """Return when the fault was done so often; fail when that takes too long."""
        deadline = time.monotonic() + seconds
        while self.counts[fault] < count:
            assert time.monotonic() < deadline, f"waited in vain for {count} x {fault.name}, had {self.counts}"
            time.sleep(0.01)

    def chosen(self, method: str, path: str, headers: Collection[str] = ()) -> Rule | None:
        """Note a request; returns the rule that applies to it."""
        with self._lock:
            self.requests.append((method, path))
            if not self.enabled:
                return None
            applies = [
                rule
                for rule in self._rules
                if rule.method in ("", method)
                and rule.path in path
                and (not rule.header or any(name.lower().startswith(rule.header) for name in headers))
            ]
            for rule in applies:  # all of them count the request, whichever decides
                self._matched[rule] += 1
            for rule in applies:
                if (rule.nth is None or self._matched[rule] in rule.nth) and self._falls(rule, method, path):
                    return rule
        return None

    def _falls(self, rule: Rule, method: str, path: str) -> bool:
        if rule.chance >= 1:
            return True
        self._drawn[rule, method, path] += 1
        number = self._drawn[rule, method, path]
        key = f"{self._seed} {self._rules.index(rule)} {method} {path} {number}"
        return random.Random(key).random() < rule.chance

    def note(self, fault: Fault) -> None:
        """Count a fault that is about to be done."""
        with self._lock:
            self.counts[fault] += 1

    def pause(self, seconds: float) -> None:
        """Wait, but not beyond the end of the proxy."""
        self._ended.wait(seconds)

    def forward(
        self, method: str, path: str, headers: list[tuple[str, str]], body: bytes, whole: bool
    ) -> _Reply | None:
        """The server's reply; None when it does not answer, or not the `whole` body was sent."""
        connection = http.client.HTTPConnection(*self._upstream, timeout=UPSTREAM_SECONDS)
        try:
            connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
            for name, value in headers:
                connection.putheader(name, value)
            connection.endheaders(body if whole else body[: len(body) // 2])
            if not whole:
                return None
            reply = connection.getresponse()
            return _Reply(reply.status, reply.reason, reply.getheaders(), reply.read())
        except (OSError, http.client.HTTPException):
            return None
        finally:
            connection.close()


@dataclass(frozen=True)
class _Reply:
    status: int
    reason: str
    headers: list[tuple[str, str]]
    body: bytes

    def encoded(self, is_head: bool) -> tuple[bytes, bytes]:
        """The head and the body as they go to the client, with a length where the server had chunks."""
        lines = [f"HTTP/1.1 {self.status} {self.reason}"]
        names = {name.lower() for name, _ in self.headers}
        lines += [f"{name}: {value}" for name, value in self.headers if name.lower() not in HOP_BY_HOP]
        if "content-length" not in names and self.status not in (204, 304):
            lines.append(f"Content-Length: {len(self.body)}")
        return "\r\n".join([*lines, "", ""]).encode("latin-1"), b"" if is_head else self.body


class _Server(ThreadingHTTPServer):
    """Keeps its connections, to cut them at the end or by a fault."""

    daemon_threads = False
    request_queue_size = 256

    def __init__(self, proxy: FaultProxy) -> None:
        self.proxy = proxy
        self._open: set[socket.socket] = set()
        super().__init__(("127.0.0.1", 0), _Handler)

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, address = super().get_request()
        self._open.add(connection)
        return connection, address

    def shutdown_request(self, request: Any) -> None:
        self._open.discard(request)
        request.close()  # not shut down before, which would be a polite end; see `_Handler.reset`

    def end_connections(self) -> None:
        for connection in list(self._open):
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue  # ended meanwhile

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that go away, or are killed, are no error; all else is."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def do(self) -> None:
        proxy = self.server.proxy
        body = self._body()
        rule = proxy.chosen(self.command, self.path, self.headers.keys())
        if rule is not None:
            proxy.note(rule.fault)
            if rule.before is not None:
                rule.before()
            if rule.fault in (Fault.STALL, Fault.DELAY):
                proxy.pause(rule.seconds)
            if rule.fault in (Fault.RESET, Fault.STALL):
                self.reset()
                return
            if rule.fault in _ANSWERS:
                self._answer(rule.fault)
                return
        headers = [(name, value) for name, value in self.headers.items() if name.lower() != "expect"]
        fault = None if rule is None else rule.fault
        reply = proxy.forward(self.command, self.path, headers, body, fault is not Fault.CUT_UPLOAD)
        if reply is None or fault is Fault.LOST_REPLY:
            if reply is None and fault is not Fault.CUT_UPLOAD:
                proxy.note(Fault.UNREACHABLE)
            self.reset()
        else:
            self._send(reply, cut=fault is Fault.TRUNCATED)

    do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = do

    def reset(self) -> None:
        """End the connection by RST, as a crashed server or a firewall does."""
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def _send(self, reply: _Reply, cut: bool) -> None:
        head, body = reply.encoded(self.command == "HEAD")
        if cut:
            self.close_connection = True
            self.wfile.write(head + body[: len(body) // 2] if body else head[: len("HTTP/1.1")])
        else:
            self.wfile.write(head + body)

    def _answer(self, fault: Fault) -> None:
        status, code = fault.value.split()
        xml = f'<?xml version="1.0" encoding="UTF-8"?><Error><Code>{code}</Code><Message>scripted</Message></Error>'
        body = b"" if self.command == "HEAD" else xml.encode()
        self._send(_Reply(int(status), code, [("Content-Type", "application/xml")], body), cut=False)

    def _body(self) -> bytes:
        """The request's body as it was sent, chunks with their frames."""
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        raw = b""
        while True:
            size = self.rfile.readline()
            raw += size
            length = int(size.partition(b";")[0], 16)
            raw += self.rfile.read(length + 2) if length else b""
            if not length:
                while (line := self.rfile.readline()) not in (b"\r\n", b""):
                    raw += line
                return raw + line

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""
