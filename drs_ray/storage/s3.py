"""A prefix of a bucket, on S3 or an S3-compatible server, as a store."""

from __future__ import annotations

import os
import random
import re
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing
from functools import cached_property
from typing import TYPE_CHECKING, TypedDict

from drs_ray.errors import ConfigError, MissingObjectError
from drs_ray.storage.base import PLACES, StoredObject, check_key, create_once, try_writing
from drs_ray.storage.reasons import CREDENTIALS_REMEDY, s3_code, s3_errors, s3_status, without_userinfo

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

_BODY_READS = 3  # boto3 retries requests, but not interrupted bodies
_CONNECT_SECONDS = 10
# A limit on silence, not on a whole transfer, which may take long on a slow link. A part has some hundred kilobytes, so
# a server that is silent for longer has lost the request, and a retry is better than waiting. Five attempts with their
# pauses (at most 15 s) end within three minutes.
_READ_SECONDS = 20
# Older Ceph and MinIO, and Google's S3 interface, refuse requests with the checksums that boto3 has sent since 2025.
# Format of variables of a boto3 session: name in the profile, name in the environment, default, conversion.
_NO_NEWER_CHECKSUMS = {
    name: (name, f"AWS_{name.upper()}", "when_required", None)
    for name in ("request_checksum_calculation", "response_checksum_validation")
}


class _Part(TypedDict, total=False):
    """Additional arguments of a request for a range of bytes."""

    Range: str


class S3Store:
    """A prefix of a bucket. The client is created at the first use."""

    def __init__(self, uri: str, endpoint_url: str | None = None) -> None:
        bucket, _, prefix = uri.removeprefix("s3://").partition("/")
        names = [name for name in prefix.split("/") if name]  # "a//b" is a mistake, and some servers turn it into "a/b"
        if "@" in bucket or ":" in bucket:  # a secret may contain a slash: do not show any of it
            raise ConfigError(f"an s3:// URI has a bucket's name alone, no credentials or port; {CREDENTIALS_REMEDY}")
        if not uri.startswith("s3://") or not bucket or {".", ".."} & set(names):
            raise ConfigError(f"{uri}: is not s3://bucket/prefix; {PLACES}")
        self._endpoint_url = endpoint_url
        # The endpoint that boto3 would choose; it is needed here for the addressing style and for messages.
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
        """The boto3 client, which is thread-safe: standard retries, 5 attempts or AWS_MAX_ATTEMPTS."""
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
                if is_own:  # only the default: environment and profile override it
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
                # A new session, because boto3's default session is not thread-safe.
                client = boto3.Session(botocore_session=session).client(
                    "s3", endpoint_url=self._endpoint_url, config=config
                )
                self._sends_checksums = is_own and "when_supported" in (
                    session.get_config_variable(name) for name in _NO_NEWER_CHECKSUMS
                )
                return client
            except ValueError as error:  # its text may contain the whole endpoint
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
                    if s3_code(error) == "InvalidRange":  # the range begins after the end; a file gives b"" too
                        return b""
                    if s3_code(error) == "404" and attempt < _BODY_READS:  # the body with the code was lost
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
        return create_once(lambda: self._put_if_absent(key, data), lambda: self.get(key), data, place)

    def list(self, prefix: str = "") -> Iterator[StoredObject]:
        """See `Store.list`."""
        if prefix:
            check_key(prefix.rstrip("/"), self.uri)
        found = []
        with self._errors(f"{self.uri}/{prefix}"):
            pages = self.client.get_paginator("list_objects_v2").paginate(
                Bucket=self._bucket, Prefix=self._base + prefix
            )
            for page in pages:
                for entry in page.get("Contents", ()):
                    key = entry["Key"].removeprefix(self._base)
                    # Skip hidden names, and the empty objects "name/" that consoles create for folders.
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
        try_writing(self)

    def _errors(self, place: str) -> AbstractContextManager[None]:
        return s3_errors(self._endpoint, place, lambda: self._sends_checksums)  # set when the client is created

    def _place(self, key: str) -> str:
        return f"{self.uri}/{check_key(key, self.uri)}"

    def _put_if_absent(self, key: str, data: bytes) -> bool:
        from botocore.exceptions import ClientError

        with self._errors(self._place(key)):
            try:
                self.client.put_object(Bucket=self._bucket, Key=self._base + key, Body=data, IfNoneMatch="*")
            except ClientError as error:
                # 412: the object exists. 409: another write is in progress. Either may be caused by this PUT itself, if
                # boto3 retried it after its reply was lost.
                if s3_status(error) in (409, 412):
                    return False
                raise
        return True


def _pause(attempt: int) -> None:
    time.sleep(random.uniform(0.0, 1.0) * attempt)
