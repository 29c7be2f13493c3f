"""Moves objects, and single units of compacted objects, to `set-aside/`. Nothing is lost.

An object is copied to `set-aside/` under its own key, with a note of the reason, and only then deleted from the counts.
An earlier object in `set-aside/` is never replaced. A unit of a compacted object is copied as the part that it was. The
other units are written to a new compacted object before the old one is deleted. A move that was killed can be repeated.
"""

from __future__ import annotations

import itertools
import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from drs_ray.counts.encoding import encode_table
from drs_ray.counts.merged_parts import encode_compacted
from drs_ray.counts.part_checks import PartChecker
from drs_ray.counts.run_record import RunRecord
from drs_ray.counts.schema import SET_ASIDE_PREFIX
from drs_ray.errors import MissingObjectError
from drs_ray.storage import Store


@dataclass(frozen=True)
class Finding:
    """An object or unit that cannot be trusted, the reason, and its new key (None: a dry run, or already moved)."""

    key: str
    reason: str
    moved_to: str | None = None

    @property
    def text(self) -> str:
        """The finding in one line."""
        return f"{self.key}: {self.reason}" + (f"; moved to {self.moved_to}" if self.moved_to else "")


def move(store: Store, key: str, reason: str) -> Finding:
    """Move an object aside.

    Raises:
        StoreError: the store cannot be read or written; the object is still in its place.
    """
    try:
        data = store.get(key)
    except MissingObjectError:  # another repair was faster
        return Finding(key, reason)
    target = _keep(store, key, data, reason)
    store.delete(key)
    return Finding(key, reason, target)


def take_out(store: Store, record: RunRecord, name: str, reasons: Mapping[str, str]) -> list[Finding]:
    """Move some units of a compacted object aside, and write the others to a new compacted object.

    Args:
        store: the run's store.
        record: its run.json.
        name: key of the compacted object.
        reasons: keys of units of this object, with the reasons.

    Raises:
        UnsoundError: the compacted object cannot be trusted, or the new one is not read back as it was written.
        StoreError: the store cannot be read or written; every unit can still be read.
    """
    checker = PartChecker(record)
    try:
        units = checker.compacted(store.get(name), name)
    except MissingObjectError:  # another repair was faster
        return [Finding(key, reason) for key, reason in reasons.items()]
    where, found = units.slices(), []
    for key, reason in reasons.items():
        rows = units.table.slice(where[key].start, where[key].stop - where[key].start)
        target = _keep(store, key, encode_table(rows, record.run_id, key), reason)
        found.append(Finding(key, reason, target))
    left, other = units.only(units.keys - reasons.keys()), None
    if left.keys:
        other, data = encode_compacted(left, record.run_id)
        store.put(other, data)
        checker.compacted(store.get(other), other)
    # Each rewriting has its own note, by which a reader notices that its listing may have missed both objects.
    note = {"key": name, "without": sorted(reasons), "rewritten_as": other, "time": _now()}
    store.put(f"{SET_ASIDE_PREFIX}{name}.{secrets.token_hex(8)}.json", json.dumps(note).encode())
    store.delete(name)
    return found


def _keep(store: Store, key: str, data: bytes, reason: str) -> str:
    """Write a copy and a note. An equal copy of an interrupted repair is used; other objects are never replaced."""
    for number in itertools.count(1):
        target = f"{SET_ASIDE_PREFIX}{key}" + (f".{number}" if number > 1 else "")
        if store.create(target, data) == data:
            break
    store.create(f"{target}.json", json.dumps({"key": key, "reason": reason, "time": _now()}).encode())
    return target


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
