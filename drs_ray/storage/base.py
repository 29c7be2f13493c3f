"""Where results live: whole objects by key, in a local directory or below an s3:// prefix, never half of one.

A key is relative, with forward slashes: `counts/part-0.parquet`. Names that begin with a dot are the store's own
(temporary files, probes): they are refused as keys and never listed. Every failure is a `StoreError` of one line that
names the object and the remedy; credentials come through the standard AWS chain alone and are never in a message.
"""

from __future__ import annotations

import random
import re
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import NamedTuple, Protocol

from drs_ray.errors import MissingObjectError, StoreError

_CREATE_ATTEMPTS = 6  # of a conditional write that meets another writer's unfinished one: 3 s in all
_PROBE = ".drs-ray-probe-"
PLACES = "allowed: a directory, file:///directory or s3://bucket/prefix"
"""How messages name the places that can be."""


class StoredObject(NamedTuple):
    """What a listing says of an object: its key, its size in bytes, and when it was written (unix seconds)."""

    key: str
    size: int
    modified: float


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


def check_key(key: str, uri: str) -> str:
    """The key, or a StoreError where a store at `uri` would not take it."""
    names = key.split("/")
    hidden = any(name.startswith(".") for name in names) and not re.fullmatch(re.escape(_PROBE) + "[0-9a-f]+", key)
    if hidden or "" in names or "\\" in key or any(ord(character) < 32 for character in key):
        raise StoreError(
            f"{uri}: key {key!r} must be relative, with forward slashes and without names that are empty "
            "or begin with a dot, like 'counts/part-0.parquet'"
        )
    return key


def create_once(write: Callable[[], bool], read: Callable[[], bytes], data: bytes, place: str) -> bytes:
    """`Store.create` from a conditional write, which says whether it wrote, and a read."""
    for attempt in range(_CREATE_ATTEMPTS):
        if write():
            return data
        with suppress(MissingObjectError):  # deleted since, or the other writer has not finished: once more
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
    except BaseException:  # an interrupt, too, leaves nothing behind
        with suppress(StoreError):
            store.delete(key)
        raise
