"""The interface of stores: objects by key, in a local directory or below an s3:// prefix, always written whole.

A key is relative, with forward slashes: `counts/part-0.parquet`. Names that begin with a dot are reserved for the store
(temporary files, probes): they are refused as keys and never listed. Every failure is a `StoreError` of one line that
names the object and the remedy. Credentials come only from the standard AWS chain and are never in a message.
"""

from __future__ import annotations

import random
import re
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import NamedTuple, Protocol, runtime_checkable

from drs_ray.errors import MissingObjectError, StoreError

_CREATE_ATTEMPTS = 6  # attempts of a conditional write during an unfinished write of another process: 3 s in all
_PROBE = ".drs-ray-probe-"
PLACES = "allowed: a directory, file:///directory or s3://bucket/prefix"
"""The allowed places, for messages."""


class StoredObject(NamedTuple):
    """An object in a listing: its key, size in bytes, and time of writing (unix seconds)."""

    key: str
    size: int
    modified: float


@runtime_checkable
class Store(Protocol):
    """Whole objects by key below one place. Every method raises `StoreError`."""

    uri: str
    """The place: an absolute path or `s3://bucket/prefix`, without a trailing slash."""

    def get(self, key: str) -> bytes:
        """The object under `key`; `MissingObjectError` if there is none."""

    def get_range(self, key: str, first: int, size: int) -> bytes:
        """`size` bytes of the object from byte `first` on, fewer at its end; `MissingObjectError` as for `get`."""

    def put(self, key: str, data: bytes) -> None:
        """Stores `data` under `key`, whole or not at all, and replaces an earlier object."""

    def create(self, key: str, data: bytes) -> bytes:
        """Stores `data` under `key` unless there is an object; returns the object that is stored then."""

    def list(self, prefix: str = "") -> Iterator[StoredObject]:
        """The objects whose keys start with `prefix` (any string, not only a directory), sorted by key."""

    def delete(self, key: str) -> None:
        """Removes the object under `key`; it may be missing."""

    def check_writable(self) -> None:
        """Lists, writes, reads and deletes once, and leaves nothing behind, so that a run can fail early."""


def check_key(key: str, uri: str) -> str:
    """The key; StoreError if it is not allowed in the store at `uri`."""
    names = key.split("/")
    hidden = any(name.startswith(".") for name in names) and not re.fullmatch(re.escape(_PROBE) + "[0-9a-f]+", key)
    if hidden or "" in names or "\\" in key or any(ord(character) < 32 for character in key):
        raise StoreError(
            f"{uri}: key {key!r} must be relative, with forward slashes and without names that are empty "
            "or begin with a dot, like 'counts/part-0.parquet'"
        )
    return key


def create_once(write: Callable[[], bool], read: Callable[[], bytes], data: bytes, place: str) -> bytes:
    """`Store.create` from a read and a conditional write, which returns whether it wrote."""
    for attempt in range(_CREATE_ATTEMPTS):
        if write():
            return data
        with suppress(MissingObjectError):  # deleted since, or the other writer has not finished: try again
            return read()
        time.sleep(random.uniform(0.05, 0.15) * 2**attempt)
    raise StoreError(f"{place}: neither there nor to be created; end the other process that writes and deletes it")


def try_writing(store: Store) -> None:
    """Write, read and delete once, conditionally; nothing is left behind."""
    key = _PROBE + secrets.token_hex(8)
    try:
        store.create(key, b"first")
        if store.create(key, b"second") != b"first":
            raise StoreError(
                f"{store.uri}: the server ignores conditional writes (If-None-Match), so that two drivers could "
                "overwrite each other's run; use another server or a local directory"
            )
        store.delete(key)
    except BaseException:  # an interrupt must not leave anything behind either
        with suppress(StoreError):
            store.delete(key)
        raise
