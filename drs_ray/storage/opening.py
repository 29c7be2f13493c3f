"""Opens the store of a URI or a path."""

from __future__ import annotations

import os
import re
from urllib.parse import unquote

from drs_ray.errors import ConfigError
from drs_ray.storage.base import PLACES, Store
from drs_ray.storage.local import LocalStore
from drs_ray.storage.reasons import without_userinfo
from drs_ray.storage.s3 import S3Store

_GS = "a bucket of Google's: s3://bucket/prefix, the endpoint https://storage.googleapis.com and an HMAC key"


def open_store(uri: str | os.PathLike[str] | Store, endpoint_url: str | None = None) -> Store:
    """The store at `uri`: `s3://bucket/prefix`, `file:///directory` or a path. Touches neither disk nor network.

    Args:
        uri: the place; `~` is expanded in a path, `%20` is decoded in a file:// URI. A store is returned as it is.
        endpoint_url: http(s) address of an S3-compatible server; None: AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL or AWS.

    Raises:
        ConfigError: another scheme, no bucket, credentials in the URI.
    """
    if isinstance(uri, Store):
        return uri
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
    raise ConfigError(f"{without_userinfo(uri)}: cannot store there; {PLACES}{hint}")


def _text_of(uri: str | os.PathLike[str]) -> str:
    if isinstance(uri, os.PathLike):
        uri = os.fspath(uri)
    if not isinstance(uri, str):
        raise ConfigError(f"a place must be text or a path, got a {type(uri).__name__}; {PLACES}")
    return uri


def open_place_of(location: str | os.PathLike[str], endpoint_url: str | None = None) -> tuple[Store, str]:
    """The store that holds one file, and the file's key in it. Touches neither disk nor network.

    Args:
        location: path or URI of the file.
        endpoint_url: as for `open_store`.

    Raises:
        ConfigError: as `open_store`.
    """
    place, slash, name = _text_of(location).rpartition("/")
    return open_store(place or ("/" if slash else "."), endpoint_url), name
