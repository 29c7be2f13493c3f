"""S3 servers on loopback for tests and trials: moto (in this process) and SeaweedFS (a real server, one process).

`python -m tests.servers` starts a SeaweedFS, prints its address and credentials as shell exports, runs until Ctrl-C.
"""

from __future__ import annotations

import ctypes
import os
import secrets
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BUCKET = "drs-ray-tests"
STARTS = 3  # a free port may be taken by someone else before weed binds it
READY_S = 60.0


@dataclass(frozen=True)
class S3Server:
    """A running server with one bucket, `BUCKET`, and one pair of credentials."""

    endpoint: str
    access_key: str
    secret_key: str

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs to use the server: the standard AWS variables, AWS_ENDPOINT_URL among them."""
        return {
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": self.endpoint,
        }

    def client(self) -> Any:
        """A boto3 client with few retries, independent of drs_ray and of the environment."""
        import boto3
        from botocore.config import Config

        return boto3.Session(self.access_key, self.secret_key, region_name="us-east-1").client(
            "s3",
            endpoint_url=self.endpoint,
            config=Config(retries={"total_max_attempts": 1}, s3={"addressing_style": "path"}),
        )


@contextmanager
def moto_server() -> Iterator[S3Server]:
    """moto's imitation of S3, in threads of this process; any credentials are accepted."""
    from moto.server import ThreadedMotoServer

    threaded = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    threaded.start()
    try:
        http_server = threaded._server
        assert http_server is not None
        # moto looks for the object and stores it in two steps: alone, its If-None-Match lets two writers win.
        http_server.app = _one_at_a_time(http_server.app)
        host, port = threaded.get_host_and_port()
        server = S3Server(f"http://{host}:{port}", "moto-key", secrets.token_hex(20))
        with closing(server.client()) as client:
            client.create_bucket(Bucket=BUCKET)
        yield server
    finally:
        threaded.stop()


def _one_at_a_time(app: Callable[..., Iterable[bytes]]) -> Callable[..., Iterable[bytes]]:
    lock = threading.Lock()

    def locked(environ: Mapping[str, object], start_response: object) -> Iterable[bytes]:
        with lock:
            return app(environ, start_response)

    return locked


@contextmanager
def seaweed_server() -> Iterator[S3Server]:
    """SeaweedFS with ports, credentials and a data directory of its own; ended by its process id."""
    with mortal_seaweed() as weed:
        yield weed.server


@contextmanager
def mortal_seaweed() -> Iterator[Seaweed]:
    """`seaweed_server` that can be killed and started again."""
    with tempfile.TemporaryDirectory(prefix="drs-weed-") as directory:
        weed = _start(Path(directory))
        try:
            yield weed
        finally:
            weed.end()


class Seaweed:
    """A SeaweedFS process: `server` is how to reach it, the same after a restart as before."""

    def __init__(self, home: Path) -> None:
        """Launch it, with its data in `home`, on ports that are free now."""
        self._home = home
        self._ports = _free_ports()
        self.server = S3Server(f"http://127.0.0.1:{self._ports['s3.port']}", "weed-key", secrets.token_hex(20))
        self._process = _launch(home, self._ports, self.server)

    def wait_ready(self) -> bool:
        """True when it can be written to; False when it has ended, for example because a port was taken."""
        return _wait_ready(self._process, self.server)

    def kill(self) -> None:
        """End it by SIGKILL: it cannot tidy up."""
        self._process.kill()
        self._process.wait()

    def restart(self) -> None:
        """Start it again after `kill`, with the same data, ports and credentials; it ends with the calling thread."""
        for _ in range(STARTS):
            self._process = _launch(self._home, self._ports, self.server)
            if self.wait_ready():
                return
            self.kill()
        raise RuntimeError(f"weed mini did not start again: {self.log()}")

    def end(self) -> None:
        """End it for good."""
        _end(self._process, self._ports)

    def log(self) -> str:
        """The end of what it printed."""
        return (self._home / "log").read_text()[-2000:]


def _start(directory: Path) -> Seaweed:
    for start in range(STARTS):
        home = directory / str(start)
        home.mkdir()
        weed = Seaweed(home)
        try:
            if weed.wait_ready():
                return weed
        except BaseException:
            weed.end()
            raise
        weed.end()
    raise RuntimeError(f"weed mini did not start {STARTS} times: {weed.log()}")


def _free_ports() -> dict[str, int]:
    # Every port of every component: the default of a gRPC port is its HTTP port + 10000, which may be taken.
    options = [f"{part}.port{kind}" for part in ("master", "volume", "filer", "s3", "admin") for kind in ("", ".grpc")]
    with ExitStack() as held:
        sockets = [held.enter_context(closing(socket.socket())) for _ in options]
        for listener in sockets:
            listener.bind(("127.0.0.1", 0))
        return {option: listener.getsockname()[1] for option, listener in zip(options, sockets, strict=True)}


def _launch(home: Path, ports: Mapping[str, int], server: S3Server) -> subprocess.Popen[bytes]:
    options = {
        "dir": str(home),
        "ip": "127.0.0.1",
        "ip.bind": "127.0.0.1",
        "master.telemetry": "false",
        "admin.ui": "false",
        "webdav": "false",
        "s3.port.iceberg": "0",
        "s3.port.lance": "0",
        "s3.autoCreateBucket": "false",  # else a PUT to a missing bucket succeeds
        "bucket": BUCKET,
        **{option: str(port) for option, port in ports.items()},
    }
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "S3_"))}
    environment = inherited | {
        "AWS_ACCESS_KEY_ID": server.access_key,  # weed makes an administrator of these
        "AWS_SECRET_ACCESS_KEY": server.secret_key,
        "HOME": str(home),
        "TMPDIR": str(home),  # its logs
    }
    weed = Path(sysconfig.get_path("scripts"), "weed")
    with (home / "log").open("ab") as log:
        return subprocess.Popen(
            [weed, "mini", *(f"-{name}={value}" for name, value in options.items())],
            cwd=home,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C is for the tests; they end the server
            preexec_fn=_end_with_parent,
        )


def _end_with_parent() -> None:
    """Killed tests must not leave their server behind (Linux only; elsewhere they may). The parent is a thread."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def _wait_ready(process: subprocess.Popen[bytes], server: S3Server) -> bool:
    """True when our credentials can write (so it is our server, with volumes); False when the process has ended."""
    from botocore.exceptions import BotoCoreError, ClientError

    deadline = time.monotonic() + READY_S
    with closing(server.client()) as client:
        while process.poll() is None:
            try:
                client.put_object(Bucket=BUCKET, Key="ready", Body=b"ready")
                client.delete_object(Bucket=BUCKET, Key="ready")
                return True
            except (BotoCoreError, ClientError):
                if time.monotonic() > deadline:
                    return False
                time.sleep(0.1)
    return False


def _end(process: subprocess.Popen[bytes], ports: Mapping[str, int]) -> None:
    process.terminate()
    try:
        process.wait(15)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for port in ports.values():  # unix sockets, which weed puts into /tmp and forgets
        for leftover in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
            leftover.unlink(missing_ok=True)


def main() -> None:
    """Runs a SeaweedFS until Ctrl-C or SIGTERM."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with seaweed_server() as server:
        print(f"# SeaweedFS at {server.endpoint} with the bucket s3://{BUCKET}; Ctrl-C ends it and its data")
        for name, value in server.environment.items():
            print(f"export {name}={value}")
        sys.stdout.flush()
        try:
            signal.pause()
        except KeyboardInterrupt:
            print("# ended")


if __name__ == "__main__":
    main()
