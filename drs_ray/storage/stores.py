"""Where results live: whole objects by key, in a local directory or below an s3:// prefix, never half of one.

A key is relative, with forward slashes: `counts/part-0.parquet`. Names that begin with a dot are the store's own
(temporary files, probes): they are refused as keys and never listed. Every failure is a `StoreError` of one line that
names the object and the remedy; credentials come through the standard AWS chain alone and are never in a message.
"""

from __future__ import annotations

import errno
import os
import random
import re
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypedDict
from urllib.parse import unquote

from drs_ray.errors import ConfigError, MissingObjectError, StoreError
from drs_ray.storage.reasons import (
    CREDENTIALS_REMEDY,
    os_errors,
    s3_code,
    s3_errors,
    s3_status,
    without_userinfo,
)

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

_CREATE_ATTEMPTS = 6  # of a conditional write that meets another writer's unfinished one: 3 s in all
_PROBE = ".drs-ray-probe-"
_BODY_READS = 3  # boto3 retries a request, but not a body that breaks off
_CONNECT_SECONDS = 10
# Of silence, not of a whole transfer: a slow link may take its time. A part is some hundred kilobytes, so a server that
# is silent for longer has lost the request, and sending it again is better than a worker that waits. Five attempts with
# their pauses (15 s at most) end within three minutes.
_READ_SECONDS = 20
# Older Ceph and MinIO, and Google's S3 interface, refuse requests with the checksums that boto3 has sent since 2025. A
# variable of boto3's session: name in the profile, in the environment, default, conversion.
_NO_NEWER_CHECKSUMS = {
    name: (name, f"AWS_{name.upper()}", "when_required", None)
    for name in ("request_checksum_calculation", "response_checksum_validation")
}
_PLACES = "allowed: a directory, file:///directory or s3://bucket/prefix"
_GS = "a bucket of Google's: s3://bucket/prefix, the endpoint https://storage.googleapis.com and an HMAC key"


class StoredObject(NamedTuple):
    """What a listing says of an object: its key, its size in bytes, and when it was written (unix seconds)."""

    key: str
    size: int
    modified: float


class _Part(TypedDict, total=False):
    """What a request for some bytes of an object adds to one for all of them."""

    Range: str


class Store(Protocol):
    """Whole objects by key below one place. Every method raises `StoreError`."""

    uri: str
    """The place: an absolute path or `s3://bucket/prefix`, without a trailing slash."""

    def get(self, key: str) -> bytes:
        """The object under `key`; `MissingObjectError` when there is none."""

    def get_range(self, key: str, first: int, size: int) -> bytes:
        """`size` bytes of the object from byte `first` on, fewer where it ends; `MissingObjectError` as for `get`."""

    def put(self, key: str, data: bytes) -> None:
        """Stores `data` under `key`, whole or not at all, in place of what was there."""

    def create(self, key: str, data: bytes) -> bytes:
        """Stores `data` under `key` unless there is an object; returns what is there then, ours or another's."""

    def list(self, prefix: str = "") -> Iterator[StoredObject]:
        """The objects whose keys start with `prefix` (any string, not only a directory), sorted by key."""

    def delete(self, key: str) -> None:
        """Removes the object under `key`; it may be missing."""

    def check_writable(self) -> None:
        """Lists, writes, reads and deletes once and leaves nothing behind, so that a run fails early or not at all."""


def open_store(uri: str | os.PathLike[str], endpoint_url: str | None = None) -> Store:
    """The store at `uri`: `s3://bucket/prefix`, `file:///directory` or a path. Touches neither disk nor network.

    Args:
        uri: the place; `~` is expanded in a path, `%20` is decoded in a file:// URI.
        endpoint_url: http(s) address of an S3-compatible server; None: AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL or AWS.

    Raises:
        ConfigError: another scheme, no bucket, credentials in the URI.
    """
    uri = _text_of(uri)
    if not isinstance(endpoint_url, str | None):
        raise ConfigError(f"endpoint_url must be text, http(s)://host:port, got a {type(endpoint_url).__name__}")
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://|(?:s3|file)(?=:)", uri)
    if scheme is None:
        return LocalStore(uri)
    if scheme[1] == "s3":
        return S3Store(uri, endpoint_url)
    if scheme[1] == "file":
        host, _, path = uri.removeprefix("file://").partition("/")
        if host in ("", "localhost"):
            return LocalStore(unquote(f"/{path}"))
    hint = f" ({_GS})" if scheme[1] == "gs" else ""
    raise ConfigError(f"{without_userinfo(uri)}: cannot store there; {_PLACES}{hint}")


def _text_of(uri: str | os.PathLike[str]) -> str:
    if isinstance(uri, os.PathLike):
        uri = os.fspath(uri)
    if not isinstance(uri, str):
        raise ConfigError(f"a place must be text or a path, got a {type(uri).__name__}; {_PLACES}")
    return uri


def open_place_of(location: str | os.PathLike[str], endpoint_url: str | None = None) -> tuple[Store, str]:
    """The store that holds one file, and the file's key there; touches neither disk nor network.

    Args:
        location: path or URI of the file.
        endpoint_url: as for `open_store`.

    Raises:
        ConfigError: as `open_store`.
    """
    place, slash, name = _text_of(location).rpartition("/")
    return open_store(place or ("/" if slash else "."), endpoint_url), name


class LocalStore:
    """A directory, made on demand. Objects are files; a name appears only when its bytes are on the disk."""

    def __init__(self, path: str | Path) -> None:
        if not str(path) or "\0" in str(path):
            raise ConfigError(f"{str(path)!r}: is no directory's name; {_PLACES}")
        self._root = Path(os.path.abspath(Path(path).expanduser()))  # noqa: PTH100 - resolve() would follow links
        self.uri = str(self._root)

    def get(self, key: str) -> bytes:
        """See `Store.get`."""
        return self.get_range(key, 0, -1)

    def get_range(self, key: str, first: int, size: int) -> bytes:
        """See `Store.get_range`."""
        path = self._path(key)
        with os_errors(path):
            try:
                with path.open("rb") as file:
                    file.seek(first)
                    return file.read(size)
            except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
                raise MissingObjectError(f"{path}: not found; check the path") from None

    def put(self, key: str, data: bytes) -> None:
        """See `Store.put`."""
        self._write(self._path(key), data, os.replace)

    def create(self, key: str, data: bytes) -> bytes:
        """See `Store.create`."""
        path = self._path(key)
        return _create(lambda: self._write(path, data, os.link), lambda: self.get(key), data, str(path))

    def list(self, prefix: str = "") -> Iterator[StoredObject]:
        """See `Store.list`."""
        if prefix:
            _check_key(prefix.rstrip("/"), self.uri)
        found = []
        with os_errors(self._root):
            top = self._root / prefix.rpartition("/")[0]
            for directory, names, files in os.walk(top, onerror=self._unlistable):
                here = Path(directory).relative_to(self._root).as_posix()
                base = "" if here == "." else f"{here}/"
                names[:] = [name for name in names if not name.startswith(".") and _may_hold(f"{base}{name}/", prefix)]
                for name in files:
                    key = base + name
                    if key.startswith(prefix) and not name.startswith("."):
                        with suppress(FileNotFoundError):  # deleted since it was seen
                            status = os.stat(f"{directory}/{name}")  # noqa: PTH116 - a Path each costs more than the rest
                            found.append(StoredObject(key, status.st_size, status.st_mtime))
        return iter(sorted(found))

    def delete(self, key: str) -> None:
        """See `Store.delete`."""
        path = self._path(key)
        with os_errors(path), suppress(FileNotFoundError, NotADirectoryError):
            path.unlink()

    def check_writable(self) -> None:
        """See `Store.check_writable`."""
        with os_errors(self._root):
            made_here = _missing_directories(self._root)
        try:
            _probe(self)
        finally:
            for directory in made_here:
                with suppress(OSError):  # another process has put something there
                    directory.rmdir()

    def _path(self, key: str) -> Path:
        return self._root / _check_key(key, self.uri)

    def _unlistable(self, error: OSError) -> None:
        # A directory that is not there (any more) holds no objects; os.walk would hide every other error too.
        if isinstance(error, FileNotFoundError):
            return
        if isinstance(error, NotADirectoryError) and self._root.is_dir():
            return
        raise error

    @staticmethod
    def _write(path: Path, data: bytes, commit: Callable[[Path, Path], None]) -> bool:
        """Writes `data` beside `path` and commits it; False when `commit` found the name taken (os.link)."""
        with os_errors(path):
            descriptor, temporary = _temporary_file(path.parent)
            try:
                with os.fdopen(descriptor, "wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(descriptor)
                try:
                    commit(temporary, path)
                except FileExistsError:
                    return False
            finally:
                with suppress(OSError):  # moved away by os.replace; or the error above is the one to tell
                    temporary.unlink()
            _sync_directory(path.parent)
        return True


class S3Store:
    """A prefix of an S3 bucket, or of an S3-compatible server. The client is made at the first use."""

    def __init__(self, uri: str, endpoint_url: str | None = None) -> None:
        bucket, _, prefix = uri.removeprefix("s3://").partition("/")
        names = [name for name in prefix.split("/") if name]  # "a//b" is a slip, and some servers make it "a/b"
        if "@" in bucket or ":" in bucket:  # a secret may contain a slash: show nothing of it
            raise ConfigError(f"an s3:// URI has a bucket's name alone, no credentials or port; {CREDENTIALS_REMEDY}")
        if not uri.startswith("s3://") or not bucket or {".", ".."} & set(names):
            raise ConfigError(f"{uri}: is not s3://bucket/prefix; {_PLACES}")
        self._endpoint_url = endpoint_url
        # What boto3 would take by itself; it is needed here for the style of addressing and for messages.
        self._endpoint = endpoint_url or os.getenv("AWS_ENDPOINT_URL_S3") or os.getenv("AWS_ENDPOINT_URL") or ""
        if self._endpoint and not re.match("https?://[^/]", self._endpoint):
            raise ConfigError(
                f"endpoint_url {without_userinfo(self._endpoint)}: must start with http:// or https://; "
                "correct the endpoint_url or AWS_ENDPOINT_URL"
            )
        self._sends_checksums = False
        self._bucket = bucket
        self._base = "".join(f"{name}/" for name in names)
        self.uri = "/".join(("s3:/", bucket, *names))

    @cached_property
    def client(self) -> S3Client:
        """The boto3 client, safe for threads: standard retries, 5 attempts unless AWS_MAX_ATTEMPTS says otherwise."""
        import boto3
        import botocore.session
        from botocore.config import Config
        from botocore.configprovider import ConfiguredEndpointProvider

        with s3_errors(self._endpoint, self.uri):
            try:
                session = botocore.session.Session()
                configured = ConfiguredEndpointProvider(
                    full_config=session.full_config, scoped_config=session.get_scoped_config(), client_name="s3"
                )
                is_own = bool(self._endpoint or configured.provide())
                if is_own:  # the default only: variables and profile come first
                    session.session_var_map.update(_NO_NEWER_CHECKSUMS)
                config = Config(
                    # In a Config, `max_attempts` would count the retries only.
                    retries={
                        "mode": "standard",
                        "total_max_attempts": session.get_config_variable("max_attempts") or 5,
                    },
                    connect_timeout=_CONNECT_SECONDS,
                    read_timeout=_READ_SECONDS,
                    max_pool_connections=16,
                    tcp_keepalive=True,
                    s3={"addressing_style": "path" if is_own else "auto"},
                )
                # A session of our own: boto3's default session is not safe for threads.
                client = boto3.Session(botocore_session=session).client(
                    "s3", endpoint_url=self._endpoint_url, config=config
                )
                self._sends_checksums = is_own and "when_supported" in (
                    session.get_config_variable(name) for name in _NO_NEWER_CHECKSUMS
                )
                return client
            except ValueError as error:  # its text may show the whole endpoint
                raise ConfigError(
                    f"{self.uri}: boto3 refuses its settings; check the endpoint_url (a host without '_') "
                    "and the variables AWS_ENDPOINT_URL and AWS_MAX_ATTEMPTS"
                ) from error

    def get(self, key: str) -> bytes:
        """See `Store.get`."""
        return self._read(key, {})

    def get_range(self, key: str, first: int, size: int) -> bytes:
        """See `Store.get_range`."""
        return self._read(key, {"Range": f"bytes={first}-{first + size - 1}"}) if size > 0 else b""

    def _read(self, key: str, part: _Part) -> bytes:
        from botocore.exceptions import (
            ChecksumError,
            ClientError,
            FlexibleChecksumError,
            IncompleteReadError,
            ReadTimeoutError,
            ResponseStreamingError,
        )
        from urllib3.exceptions import HTTPError

        broke_off = (IncompleteReadError, ReadTimeoutError, ResponseStreamingError, HTTPError)
        damaged = (ChecksumError, FlexibleChecksumError)
        place = self._place(key)
        with self._errors(place):
            for attempt in range(1, _BODY_READS + 1):
                try:
                    body = self.client.get_object(Bucket=self._bucket, Key=self._base + key, **part)["Body"]
                except ClientError as error:
                    if s3_code(error) == "NoSuchKey":
                        raise MissingObjectError(f"{place}: not found; check the URI") from None
                    if s3_code(error) == "InvalidRange":  # it begins beyond the end, as in a file
                        return b""
                    if s3_code(error) == "404" and attempt < _BODY_READS:  # the reply has lost the body that says more
                        _pause(attempt)
                        continue
                    raise
                try:
                    with closing(body):
                        return body.read()
                except (*broke_off, *damaged):
                    if attempt == _BODY_READS:
                        raise
                    _pause(attempt)
        raise AssertionError("the loop returns or raises")

    def put(self, key: str, data: bytes) -> None:
        """See `Store.put`. One PUT: S3 shows the whole object or none of it."""
        with self._errors(self._place(key)):
            self.client.put_object(Bucket=self._bucket, Key=self._base + key, Body=data)

    def create(self, key: str, data: bytes) -> bytes:
        """See `Store.create`."""
        place = self._place(key)
        return _create(lambda: self._put_if_absent(key, data), lambda: self.get(key), data, place)

    def list(self, prefix: str = "") -> Iterator[StoredObject]:
        """See `Store.list`."""
        if prefix:
            _check_key(prefix.rstrip("/"), self.uri)
        found = []
        with self._errors(f"{self.uri}/{prefix}"):
            pages = self.client.get_paginator("list_objects_v2").paginate(
                Bucket=self._bucket, Prefix=self._base + prefix
            )
            for page in pages:
                for entry in page.get("Contents", ()):
                    key = entry["Key"].removeprefix(self._base)
                    # Hidden names, and the empty objects "name/" that consoles make for a folder.
                    if key and not key.endswith("/") and not any(name.startswith(".") for name in key.split("/")):
                        found.append(StoredObject(key, entry["Size"], entry["LastModified"].timestamp()))
        # Not every server lists in the order of the keys (SeaweedFS: a/b before a-b; S3 directory buckets: any).
        return iter(sorted(found))

    def delete(self, key: str) -> None:
        """See `Store.delete`."""
        with self._errors(self._place(key)):
            self.client.delete_object(Bucket=self._bucket, Key=self._base + key)

    def check_writable(self) -> None:
        """See `Store.check_writable`. Also refuses a server that ignores If-None-Match."""
        with self._errors(self.uri):
            self.client.list_objects_v2(Bucket=self._bucket, Prefix=self._base, MaxKeys=1)
        _probe(self)

    def _errors(self, place: str) -> AbstractContextManager[None]:
        return s3_errors(self._endpoint, place, lambda: self._sends_checksums)  # known when the client is made

    def _place(self, key: str) -> str:
        return f"{self.uri}/{_check_key(key, self.uri)}"

    def _put_if_absent(self, key: str, data: bytes) -> bool:
        from botocore.exceptions import ClientError

        with self._errors(self._place(key)):
            try:
                self.client.put_object(Bucket=self._bucket, Key=self._base + key, Body=data, IfNoneMatch="*")
            except ClientError as error:
                # 412: there is an object. 409: another writer is at work. Either may be our own PUT, retried by boto3
                # after its reply was lost.
                if s3_status(error) in (409, 412):
                    return False
                raise
        return True


def _check_key(key: str, uri: str) -> str:
    names = key.split("/")
    hidden = any(name.startswith(".") for name in names) and not re.fullmatch(re.escape(_PROBE) + "[0-9a-f]+", key)
    if hidden or "" in names or "\\" in key or any(ord(character) < 32 for character in key):
        raise StoreError(
            f"{uri}: key {key!r} must be relative, with forward slashes and without names that are empty "
            "or begin with a dot, like 'counts/part-0.parquet'"
        )
    return key


def _pause(attempt: int) -> None:
    time.sleep(random.uniform(0.0, 1.0) * attempt)


def _create(write: Callable[[], bool], read: Callable[[], bytes], data: bytes, place: str) -> bytes:
    for attempt in range(_CREATE_ATTEMPTS):
        if write():
            return data
        with suppress(MissingObjectError):  # deleted since, or the other writer has not finished: once more
            return read()
        time.sleep(random.uniform(0.05, 0.15) * 2**attempt)
    raise StoreError(f"{place}: neither there nor to be created; end the other process that writes and deletes it")


def _probe(store: Store) -> None:
    key = _PROBE + secrets.token_hex(8)
    try:
        store.create(key, b"first")
        if store.create(key, b"second") != b"first":
            raise StoreError(
                f"{store.uri}: the server ignores conditional writes (If-None-Match), so that two drivers could "
                "overwrite each other's run; use another server or a local directory"
            )
        store.delete(key)
    except BaseException:  # an interrupt, too, leaves nothing behind
        with suppress(StoreError):
            store.delete(key)
        raise


def _may_hold(directory: str, prefix: str) -> bool:
    """Whether keys below a directory can start with the prefix."""
    return directory.startswith(prefix) or prefix.startswith(directory)


def _missing_directories(directory: Path) -> list[Path]:
    """`directory` and its parents as far as they do not exist, innermost first."""
    return [path for path in (directory, *directory.parents) if not path.exists()]


def _temporary_file(directory: Path) -> tuple[int, Path]:
    path = directory / f".{secrets.token_hex(8)}.tmp"
    for _ in range(10):
        with suppress(FileNotFoundError):  # another process's check_writable has just removed a directory
            for missing in reversed(_missing_directories(directory)):
                missing.mkdir(exist_ok=True)
                _sync_directory(missing.parent)
            # Not tempfile.mkstemp: its mode 0600 would keep colleagues from reading the results.
            return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666), path
    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(directory))


def _sync_directory(directory: Path) -> None:
    """Makes a new name in `directory` survive a power failure."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems cannot do it
            raise
    finally:
        os.close(descriptor)
