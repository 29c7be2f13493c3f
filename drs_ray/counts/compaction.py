"""Merges small parts into few large objects while readers and workers run (`parts` says why that is safe).

Each object is written by one PUT, read back and compared, and only then its small parts are deleted. A compaction that
was killed can be run again. Parts that another compactor has deleted, or a worker has written again, do no harm.
Objects that cannot be trusted are not changed, and are reported.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from drs_ray.counts.encoding import UnitRows
from drs_ray.counts.merged_parts import digests, encode_compacted
from drs_ray.counts.part_checks import PartChecker
from drs_ray.counts.parts import COMPACTED_AHEAD, fetch, fetch_batches, survey
from drs_ray.counts.rows import UnsoundError, joined
from drs_ray.counts.run_record import RunRecord
from drs_ray.errors import CountsError, counted
from drs_ray.storage import Store, StoredObject

UNITS_PER_OBJECT = 4096
"""Largest number of units in a compacted object, to keep its list of units small."""
BYTES_PER_OBJECT = 32 << 20
"""Largest number of bytes of small parts in a compacted object, to bound memory."""
_DELETERS = 16


@dataclass
class Compaction:
    """Number of merged units, keys of the compacted objects written, and number of deleted small parts.

    unsound: objects that were not changed because they cannot be trusted, with the reasons.
    """

    units: int = 0
    objects: list[str] = field(default_factory=list)
    deleted: int = 0
    unsound: dict[str, str] = field(default_factory=dict)

    def check(self, uri: str) -> None:
        """Check that all objects can be trusted.

        Raises:
            CountsError: naming the first object that cannot be trusted.
        """
        if self.unsound:
            raise CountsError(
                f"{uri}: {counted(len(self.unsound), 'object')} cannot be trusted and "
                f"{'was' if len(self.unsound) == 1 else 'were'} left alone, first {next(iter(self.unsound))}; move "
                f"them aside with `drs-ray repair {uri}`, then resume the run"
            )


def compact_run(store: Store, record: RunRecord) -> Compaction:
    """Merge all small parts that are stored now. A driver, readers and other compactors may run at the same time.

    Raises:
        UnsoundError: an object is not read back as it was written; its small parts are kept.
        StoreError: the store cannot be read or written; objects written before are kept.
    """
    checker, done = PartChecker(record), Compaction()
    parts, done.unsound = survey(store, record)
    already_merged: dict[str, list[str]] = {}  # small parts left by an earlier compaction or written again
    for key in sorted(parts.small.keys() & parts.holder.keys()):
        already_merged.setdefault(parts.holder[key], []).append(key)
    for name, data in fetch(store, sorted(already_merged), COMPACTED_AHEAD):
        if data is not None:
            _delete_merged(store, checker, name, data, already_merged[name], done)
    for group in _groups(item for key, item in sorted(parts.small.items()) if key not in parts.holder):
        _merge(store, checker, record, group, done)
    return done


def _merge(store: Store, checker: PartChecker, record: RunRecord, keys: Sequence[str], done: Compaction) -> None:
    sound = list(_sound(store, checker, keys, done))
    if not sound:
        return
    name, data = encode_compacted(_joined(sound), record.run_id)
    store.put(name, data)
    merged = checker.compacted(store.get(name), name)  # compares the digests of the written rows
    done.units += len(merged.keys)
    done.objects.append(name)
    done.unsound.pop(name, None)  # a damaged object of this name was replaced
    _delete(store, merged.keys, done)


def _delete_merged(
    store: Store, checker: PartChecker, name: str, data: bytes, keys: Sequence[str], done: Compaction
) -> None:
    """Delete small parts of a compacted object, if the object is sound and has the same rows."""
    try:
        merged = checker.compacted(data, name)
    except UnsoundError as error:
        done.unsound[name] = error.reason
        return
    expected = dict(zip(merged.keys, digests(merged), strict=True))
    for units in _sound(store, checker, keys, done):
        same = {key: digest == expected[key] for key, digest in zip(units.keys, digests(units), strict=True)}
        done.unsound |= {key: f"differs from the same unit in {name}" for key, equal in same.items() if not equal}
        _delete(store, [key for key, equal in same.items() if equal], done)


def _sound(store: Store, checker: PartChecker, keys: Sequence[str], done: Compaction) -> Iterator[UnitRows]:
    for batch in fetch_batches(store, keys):
        stored = [(key, data) for key, data in batch if data is not None]  # another compactor has merged the rest
        sound, unsound = checker.small(stored)
        done.unsound |= unsound
        yield from sound


def _delete(store: Store, keys: Sequence[str], done: Compaction) -> None:
    with ThreadPoolExecutor(_DELETERS) as pool:
        list(pool.map(store.delete, keys))
    done.deleted += len(keys)


def _groups(items: Iterable[StoredObject]) -> Iterator[list[str]]:
    keys: list[str] = []
    size = 0
    for item in items:
        if keys and (len(keys) == UNITS_PER_OBJECT or size + item.size > BYTES_PER_OBJECT):
            yield keys
            keys, size = [], 0
        keys.append(item.key)
        size += item.size
    if keys:
        yield keys


def _joined(units: Sequence[UnitRows]) -> UnitRows:
    return UnitRows(
        tuple(key for some in units for key in some.keys),
        np.concatenate([some.lengths for some in units]),
        pa.concat_tables([some.table for some in units]),
        joined([some.rows for some in units]),
    )
