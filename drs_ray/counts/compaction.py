"""Merging small parts into few large objects, while readers and workers go on (see `parts` for why that is safe).

Each object is one PUT, is read back and compared, and only then its small parts are deleted. Killed anywhere, it can be
run again; what another compactor deleted meanwhile, or a worker wrote once more, does no harm. What cannot be trusted
is left where it is, and named.
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
"""Most units of a compacted object: its list of units stays small."""
BYTES_PER_OBJECT = 32 << 20
"""Most bytes of small parts in a compacted object: memory stays bounded."""
_DELETERS = 16


@dataclass
class Compaction:
    """What was done: units that were merged, the objects they are in now, and small parts that were deleted.

    unsound: the objects that were left alone because they cannot be trusted, with the reasons.
    """

    units: int = 0
    objects: list[str] = field(default_factory=list)
    deleted: int = 0
    unsound: dict[str, str] = field(default_factory=dict)

    def check(self, uri: str) -> None:
        """Refuse to call it done while something cannot be trusted.

        Raises:
            CountsError: naming the first such object.
        """
        if self.unsound:
            raise CountsError(
                f"{uri}: {counted(len(self.unsound), 'object')} cannot be trusted and "
                f"{'was' if len(self.unsound) == 1 else 'were'} left alone, first {next(iter(self.unsound))}; move "
                f"them aside with `drs-ray repair {uri}`, then resume the run"
            )


def compact_run(store: Store, record: RunRecord) -> Compaction:
    """Merge all small parts that are there now. It may run beside a driver, readers and other compactors.

    Raises:
        UnsoundError: an object is not read back as it was written; its small parts are kept.
        StoreError: the place cannot be read or written; what was merged until then is.
    """
    checker, done = PartChecker(record), Compaction()
    parts, done.unsound = survey(store, record)
    again: dict[str, list[str]] = {}  # small parts that an earlier compaction left, or a worker wrote once more
    for key in sorted(parts.small.keys() & parts.holder.keys()):
        again.setdefault(parts.holder[key], []).append(key)
    for name, data in fetch(store, sorted(again), COMPACTED_AHEAD):
        if data is not None:
            _delete_merged(store, checker, name, data, again[name], done)
    for group in _groups(item for key, item in sorted(parts.small.items()) if key not in parts.holder):
        _merge(store, checker, record, group, done)
    return done


def _merge(store: Store, checker: PartChecker, record: RunRecord, keys: Sequence[str], done: Compaction) -> None:
    sound = list(_sound(store, checker, keys, done))
    if not sound:
        return
    name, data = encode_compacted(_joined(sound), record.run_id)
    store.put(name, data)
    merged = checker.compacted(store.get(name), name)  # with digests of the rows that went in
    done.units += len(merged.keys)
    done.objects.append(name)
    done.unsound.pop(name, None)  # it was there, damaged
    _delete(store, merged.keys, done)


def _delete_merged(
    store: Store, checker: PartChecker, name: str, data: bytes, keys: Sequence[str], done: Compaction
) -> None:
    """Delete small parts that are in a compacted object, if that is sound and has the same rows."""
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
        there = [(key, data) for key, data in batch if data is not None]  # others: another compactor has merged them
        sound, unsound = checker.small(there)
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
